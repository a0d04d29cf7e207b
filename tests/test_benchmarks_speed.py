"""The speed benchmarks compare what they say they compare, and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfumato.networks.build import build_network
from sfumato.networks.config import UNetConfig
from sfumato.recipes.plan import decay_of, plan_of
from sfumato.recipes.presets import recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _beside_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("dropout", [0.0, 0.13])
def test_the_plain_network_is_ours(dropout: float) -> None:
    from _plain import Plain  # pyright: ignore

    config = UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(8,), dropout=dropout)
    ours = build_network(config, in_channels=3, out_channels=3, height=16, width=16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in ours.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    plain = Plain(config, size=16)
    plain.load_state_dict(ours.state_dict())
    x, label = torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([0.5, -1.0])
    a, b = plain.eval()(x, label), ours.eval()(x, label)
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.detach().abs().max()))
    # And so are its gradients, where dropout draws nothing.
    a.square().mean().backward()
    b.square().mean().backward()
    for (name, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        scale = float(q.grad.abs().max())
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5 * scale), name


def test_the_gpu_benchmark_trains_the_preset() -> None:
    from _contestants import AUGMENT_LABELS, FULL, edm_plan  # pyright: ignore

    from sfumato.recipes.build import AUGMENT_LABELS as LABELS

    edm = recipe("edm")
    plan, preset = edm_plan(512, 512), plan_of(edm, 1 / 255, 0, decay_of(edm))
    same = [
        "objective", "noise", "learning_rate", "averaging", "optimizer", "seed", "sigma_data",
        "antithetic", "augment", "classes", "micro_batch", "clip_norm",
    ]  # fmt: skip
    assert {n: getattr(plan, n) for n in same} == {n: getattr(preset, n) for n in same}
    assert FULL.ours == edm.network
    assert FULL.batch == edm.batch
    assert FULL.steps == edm.sampler.steps == 18
    assert LABELS == AUGMENT_LABELS


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--quick"]
    command += ["--no-compile", "--no-peers", "--minutes", "2", "--out", str(out)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    table = out.read_text(encoding="utf-8")
    for word in ("gemm bfloat16", "| training | sfumato bf16 |", "| sampling | sfumato bf16 |"):
        assert word in table
    assert table in said


def test_a_run_out_of_time_leaves_a_table(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--quick"]
    command += ["--no-peers", "--minutes", "0.0001", "--out", str(out)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "the time is up" in said
    assert out.exists()


def test_without_a_gpu_the_benchmark_says_how_to_try_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(BENCHMARKS / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--device cpu --quick" in done.stderr
