"""Speed is measured as it says: FLOPs, classes, turns; and the advice follows from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recipe_helpers import array_file, in_memory, open_run, small
from sfumato.cli import main
from sfumato.errors import ConfigError
from sfumato.networks.build import build_network
from sfumato.networks.config import ADMConfig, UNetConfig
from sfumato.recipes.bench import measure as measuring
from sfumato.recipes.bench.advice import advice
from sfumato.recipes.bench.measure import ARITHMETICS, Settings, measure
from sfumato.recipes.bench.result import Rates, Result, StepTimes
from sfumato.recipes.bench.subject import Subject
from sfumato.recipes.bench.words import flops, in_lines
from sfumato.speed.ceilings import ceilings, convolution, copying, matrix_product
from sfumato.speed.flops import forward_flops, training_flops
from sfumato.speed.operators import class_of, shares
from sfumato.speed.timing import Timing, interleaved

# Ceilings of a blink, by the names of the real ones.
WORKS = ceilings(batch=1, channels=8, size=8, side=16, copied=4096)
TINY = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=())


class OneConv(nn.Module):
    """3 to 5 channels by a 3x3 convolution of stride 1, then a matrix of 5 to 2 at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.mix = nn.Linear(5, 2, bias=False)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.mix(self.conv(x).permute(0, 2, 3, 1))


def test_flops_are_those_counted_by_hand() -> None:
    conv, mix = 2 * 9 * 3 * 5 * 8 * 6, 2 * 5 * 2 * 8 * 6
    assert forward_flops(OneConv(), (3, 8, 6)) == conv + mix
    # Backward: each weight's and each input's gradient cost a forward; the image's is not needed.
    assert training_flops(OneConv(), (3, 8, 6)) == 2 * conv + 3 * mix


@pytest.mark.parametrize("config", [TINY, ADMConfig(width=8, multipliers=(1, 2), blocks=1)])
def test_training_flops_are_three_times_forward_less_the_images_gradient(
    config: UNetConfig | ADMConfig,
) -> None:
    net = build_network(config, in_channels=3, out_channels=3, height=8, width=8)
    first = 2 * 9 * 3 * 8 * 8 * 8
    forward = forward_flops(net, (3, 8, 8))
    assert training_flops(net, (3, 8, 8)) <= 3 * forward - first
    assert training_flops(net, (3, 8, 8)) == pytest.approx(3 * forward, rel=0.1)
    assert all(p.device.type == "cpu" and p.grad is None for p in net.parameters())


def test_the_network_of_the_benchmarks_has_the_published_flops() -> None:
    config = UNetConfig(width=64, multipliers=(1, 2, 2), blocks=2)
    with torch.device("meta"):
        net = build_network(config, in_channels=3, out_channels=3, height=32, width=32)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(6.99e6, rel=1e-3)
    assert forward_flops(net, (3, 32, 32)) == pytest.approx(3.5e9, rel=2e-3)


def test_works_do_what_they_say() -> None:
    assert matrix_product(16, torch.float32).amount == 2 * 16**3
    work = convolution(2, 4, 8, torch.bfloat16, channels_last=True)
    out = work.call()
    assert isinstance(out, torch.Tensor)
    assert out.shape == (2, 4, 8, 8)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert work.amount == 2 * 9 * 4 * 4 * 2 * 8 * 8
    assert copying(4096).amount == 8192
    assert {name.split()[0] for name in WORKS} == {
        "gemm", "conv", "copy",
    }  # fmt: skip


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = interleaved(calls, 0.0, rounds=3, least=0.0)
    assert order == ["a"] * 2 + ["b"] * 2 + ["a", "b"] * 3
    assert [len(t.seconds) for t in times.values()] == [3, 3]
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        interleaved(calls, 0.0, rounds=0)


def test_a_rate_is_of_the_median() -> None:
    assert Timing([1.0, 2.0, 50.0]).rate(10) == 5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::convolution_backward", "convolutions"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::native_group_norm_backward", "norms"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::addmm", "matrix products"),
        ("aten::mm", "matrix products"),
        ("aten::add_", "elementwise"),
        ("aten::silu_backward", "elementwise"),
        ("aten::copy_", "copies"),
        ("aten::cat", "copies"),
        ("aten::random_", "dropout"),
        ("aten::normal_", "random numbers"),
        ("aten::_fused_adam_", "optimizer"),
        ("aten::_foreach_lerp_", "moving average"),
        ("aten::_foreach_norm", "optimizer"),
        ("aten::upsample_nearest2d", "resampling"),
        ("_NormActBackward", "norms"),
        ("_JoinBackward", "elementwise"),
        ("_Resampled", "resampling"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "other"),
    ],
)
def test_operators_have_a_class(name: str, expected: str) -> None:
    assert class_of(name) == expected


def test_shares_find_what_dominates() -> None:
    x, w = torch.randn(8, 32, 32, 32), torch.randn(32, 32, 3, 3)
    found = shares(lambda: torch.nn.functional.conv2d(x, w, padding=1) + 1)
    assert next(iter(found)) == "convolutions"
    assert sum(found.values()) == pytest.approx(1)
    parameter = nn.Parameter(torch.zeros(1_000_000))
    parameter.grad = torch.ones_like(parameter)
    assert next(iter(shares(torch.optim.Adam([parameter]).step))) == "optimizer"


# --- advice, on numbers made up --------------------------------------------------------------


def result() -> Result:
    """A machine and a network about which there is nothing to say."""
    conv = {f"conv {n}": 1e12 for n in ARITHMETICS}
    return Result(
        name="edm-tiny", shape=(3, 32, 32), parameters=1_000_000, flops_forward=10**9,
        flops_training=3 * 10**9, batch=32, batch_asked=32, precision="float32",
        ceilings={"gemm float32": 1e12, "gemm bfloat16": 2e12, "copy": 1e10, **conv},
        rates={n: Rates(500.0, 200.0) for n in ARITHMETICS},
        step=StepTimes(0.17, 0.16, 0.005, 0.001, 0.0),
        operators={"training": {"convolutions": 0.9, "norms": 0.1}, "sampling": {}},
        larger_batch=1.0, cores=2, threads=2,
    )  # fmt: skip


def faster_bf16(factor: float) -> dict[str, Rates]:
    return result().rates | {"bfloat16 NHWC": Rates(500.0 * factor, 200.0 * factor)}


def test_nothing_is_advised_where_nothing_is_lost() -> None:
    assert advice(result()) == ["Nothing to change: none of the usual losses was found."]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rates": faster_bf16(2.3)}, ["bfloat16 trains 2.3 times", "--precision bfloat16"]),
        ({"rates": faster_bf16(2.3), "precision": "auto"}, ["2.3 times", "finds that out"]),
        ({"rates": faster_bf16(0.5), "precision": "bfloat16"}, ["float32 trains 2.0 times"]),
        ({"step": StepTimes(0.3, 0.2, 0.005, 0.001, 0.3)}, ["30 % of a step", ".npy"]),
        ({"larger_batch": 1.4}, ["with 64 images instead of 32", "1.40 times less"]),
        ({"step": StepTimes(0.3, 0.2, 0.09, 0.01, 0.0)}, ["take 33 % of a step of 32 images"]),
        ({"threads": 1}, ["1 of 2 cores", "--threads 2"]),
        ({"unused_cuda": True}, ["--device cuda"]),
        ({"no_kernels": "there is no g++: install a C++ compiler"}, ["not used", "install a C++"]),
        ({"granted": 0.4}, ["40 % of the time of its 2 threads", "idle"]),
        ({"spread": 2.0}, ["2.0 times the usual", "idle"]),
        (
            {
                "rates": dict.fromkeys(ARITHMETICS, Rates(20.0, 20.0)),
                "operators": {"training": {"norms": 0.6, "convolutions": 0.4}},
            },
            ["reaches 6 % of the rate of convolutions", "40 % of its time", "norms 60 %"],
        ),
    ],
)
def test_each_loss_is_told(changed: dict[str, object], words: list[str]) -> None:
    found = advice(replace(result(), **changed))  # pyright: ignore[reportArgumentType]
    assert len(found) == 1
    assert all(word in found[0] for word in words), found


def test_the_most_rewarding_comes_first_and_a_short_measurement_blames_no_batch() -> None:
    changed = replace(
        result(), rates=faster_bf16(3.0), larger_batch=1.5, threads=1, batch=8,
        step=StepTimes(0.06, 0.04, 0.02, 0.0, 0.0),
    )  # fmt: skip
    found = advice(changed)
    assert [text.split()[0] for text in found] == ["bfloat16", "PyTorch"]
    # At the recipe's own batch the optimizer's 20 ms stand beside 160: 11 %, not worth a word.
    assert "Optimizer" in " ".join(advice(replace(changed, batch_asked=8)))


def test_fractions_are_rate_times_flops_over_the_ceiling() -> None:
    r = result()
    assert r.achieved("float32 NCHW") == (500e9, 600e9)
    assert r.fraction("bfloat16 NHWC", "gemm", training=True) == 0.3
    assert r.fraction("bfloat16 NHWC", "conv", training=False) == 0.5
    assert flops(1.5e12) == "1.5 TFLOP/s"
    assert flops(2.34e11) == "234 GFLOP/s"


# --- the whole, briefly ----------------------------------------------------------------------


def test_every_number_is_there_and_printed() -> None:
    subject = Subject("small", replace(small(), batch=2), (1, 8, 8))
    recipe = replace(subject.recipe, process=replace(subject.recipe.process, sigma_data=0.5))
    found = measure(replace(subject, recipe=recipe), Settings(batch=2, seconds=0.05), works=WORKS)
    assert set(found.rates) == set(ARITHMETICS)
    assert found.batch == 2
    assert found.flops_training > 2 * found.flops_forward > 0
    assert 0 <= found.step.waited < 1
    assert found.step.step > 0
    assert 0 < found.granted <= 1
    assert {"convolutions", "optimizer"} <= set(found.operators["training"])
    assert "convolutions" in found.operators["sampling"]
    written = json.loads(json.dumps(found.to_json()))
    assert written["fractions"]["float32 NCHW"].keys() == {
        "forward of gemm", "forward of conv", "training of gemm", "training of conv",
    }  # fmt: skip
    text = "\n".join(in_lines(found))
    for word in ("ceilings", "gemm bfloat16", "copy", "optimizer", "what to change", "  1. "):
        assert word in text


def test_the_verb_measures_a_run_on_its_own_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = array_file(tmp_path / "data")
    for _ in open_run(tmp_path / "run", data).steps():
        pass
    arguments = ["bench", str(tmp_path / "run"), "--seconds", "0.05", "--batch", "2"]
    written = tmp_path / "new" / "bench.json"
    status = main([*arguments, "--data", str(data), "--device", "cpu", "--json", str(written)])
    said = capsys.readouterr().out
    assert status == 0
    assert "what to change" in said
    found = json.loads(written.read_text())
    assert found["shape"] == [1, 8, 8]
    assert str(data) in found["data"]
    assert found["precision"] == "float32"


def test_pairs_and_classes_are_measured_too() -> None:
    recipe = small("ddpm-tiny")
    subject = Subject("pairs", recipe, (1, 8, 8), classes=3, condition=2)
    found = measure(subject, Settings(batch=2, seconds=0.05), works=WORKS)
    assert found.step.gradient > 0


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'edm-tiny'"):
        Subject.of("edm-tin", (32, 32), 3)
    with pytest.raises(ConfigError, match="--size and --channels"):
        Subject.of("edm-tiny", (0, 32), 3)
    with pytest.raises(ConfigError, match="there is no folder"):
        Subject.of(str(tmp_path / "absent"))
    for _ in open_run(tmp_path / "run", array_file(tmp_path / "data")).steps():
        pass
    with pytest.raises(ConfigError, match="a run has its own"):
        Subject.of(str(tmp_path / "run"), (16, 16))
    with pytest.raises(ConfigError, match="seconds above 0"):
        Settings(seconds=0)
    with pytest.raises(ConfigError, match="give --size and --channels that agree"):
        measure(Subject.of("edm-tiny", (16, 16), 3), Settings(2, 0.01), in_memory(), works=WORKS)


def test_where_json_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for json_path in (tmp_path / "file" / "bench.json", tmp_path):
        assert main(["bench", "edm-tiny", "--json", str(json_path)]) == 2
        told = capsys.readouterr()
        assert "--json" in told.err
        assert "measuring" not in told.out


def test_a_batch_too_large_for_the_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    make, asked = measuring.gradient_call, set[int]()

    def limited(network: Any, x: torch.Tensor, *rest: Any) -> Any:
        asked.add(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("no more")
        return make(network, x, *rest)

    monkeypatch.setattr(measuring, "gradient_call", limited)
    recipe = replace(small(), process=replace(small().process, sigma_data=0.5))
    said: list[str] = []
    found = measure(
        Subject("small", recipe, (1, 8, 8)), Settings(10, 2.0), works=WORKS, say=said.append
    )
    assert (found.batch, found.larger_batch) == (3, 0.0)
    assert asked == {10, 5, 3, 6}
    assert [text for text in said if "memory" in text] == [
        "that does not fit into memory: batch 5", "that does not fit into memory: batch 3"
    ]  # fmt: skip


def test_a_batch_too_large_for_the_time_is_made_smaller() -> None:
    recipe = replace(small(), batch=4096, process=replace(small().process, sigma_data=0.5))
    found = measure(Subject("small", recipe, (1, 8, 8)), Settings(seconds=0.05), works=WORKS)
    assert found.batch < found.batch_asked == 4096
    assert np.isclose(found.batch_asked % found.batch, 0)
