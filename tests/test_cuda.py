"""On a GPU: the same steps and pictures as on a CPU, and a host that never waits in a step."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.native import gpu
from sfumato.networks.build import build_network
from sfumato.networks.config import UNetConfig
from sfumato.networks.graphed import Graphed
from sfumato.noise import karras
from sfumato.parameterization import edm_preconditioned
from sfumato.sampling import generate
from sfumato.solvers import Heun
from sfumato.training.loop import train
from sfumato.training.replay import replay_training
from sfumato.training.state import TrainState
from training_helpers import Batch, Data, plan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPE = (3, 16, 16)
CONFIG = UNetConfig(width=16, multipliers=(1, 2), blocks=1, attention=(8,), dropout=0.0)


def network(channels: int = 3, classes: int = 0, augment: int = 0) -> Any:
    torch.manual_seed(0)
    made = build_network(
        CONFIG,
        in_channels=channels,
        out_channels=channels,
        height=16,
        width=16,
        classes=classes,
        augment_labels=augment,
    )
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.02 * torch.randn(p.shape))
    return made


class Grey(Data):
    """Batches in pinned memory, as a run's loader gives them."""

    def __next__(self) -> Batch:
        batch = super().__next__()
        return Batch(batch.x.pin_memory(), batch.labels)


def run(device: str, count: int, *, overlap: bool | None = None, quick: str = "") -> Any:
    how = plan(augment=None, classes=0)
    net = network(channels=1).to(device)
    state = TrainState.start(net, how)
    if quick == "compiled":
        net.compile(dynamic=False)
    if quick == "replayed":
        replay_training(net, torch.zeros(8, 1, 16, 16).cuda(), torch.zeros(8).cuda(), {})
    data = Grey(size=16) if device == "cuda" else Data(size=16)
    return state, list(islice(train(state, data, how, overlap=overlap), count))


@pytest.mark.parametrize("overlap", [False, True])
def test_steps_are_those_of_a_cpu(overlap: bool) -> None:
    """Up to the noise, which each device draws by its own generator: by the mean loss."""
    losses = []
    for device in ("cpu", "cuda"):
        _, records = run(device, 60, overlap=overlap)
        assert all(not r.skipped for r in records)
        losses.append(sum(r.loss for r in records[30:]) / 30)
    assert losses[1] == pytest.approx(losses[0], rel=0.15)


def test_a_network_is_computed_by_our_kernels() -> None:
    assert gpu.why_not("cuda") == ""
    net = network().cuda()
    net.set_compute(torch.bfloat16, channels_last=True)
    from torch.profiler import ProfilerActivity, profile

    x, level = torch.randn(4, *SHAPE, device="cuda"), torch.zeros(4, device="cuda")
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        net(x, level).sum().backward()
    names = {event.name for event in seen.events() or ()}
    assert {"_NormAct", "_NormActBackward", "_Join", "_Resampled"} <= names
    assert "aten::native_group_norm" not in names


def test_running_ahead_changes_no_step() -> None:
    (one, first), (two, second) = (run("cuda", 20, overlap=overlap) for overlap in (False, True))
    for a, b in zip(first, second, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-3)
        assert b.gradient_norm == pytest.approx(a.gradient_norm, rel=2e-2)
    for p, q in zip(one.ema.network.parameters(), two.ema.network.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("quick", ["compiled", "replayed"])
def test_a_quicker_network_takes_the_same_steps(quick: str) -> None:
    (_, plain), (_, quicker) = (run("cuda", 15, quick=q) for q in ("", quick))
    for a, b in zip(plain, quicker, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=2e-3)
        assert b.gradient_norm == pytest.approx(a.gradient_norm, rel=2e-2)


def test_a_compiled_network_has_no_other_gradients() -> None:
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(5)).cuda()

    def gradients(net: Any) -> list[Tensor]:
        out = net(x, torch.zeros(8).cuda())
        return list(torch.autograd.grad(out.square().mean(), list(net.parameters())))

    plain, quick = network().cuda(), network().cuda()
    for net in (plain, quick):
        net.set_compute(channels_last=True)
    quick.compile(dynamic=False)
    for a, b in zip(gradients(plain), gradients(quick), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def test_a_replayed_network_is_trained_under_conditions_and_drops_labels() -> None:
    how = plan(classes=3)
    net = network(channels=1, classes=3, augment=9).cuda()
    net.label_dropout = 0.5
    state = TrainState.start(net, how)
    told = {"class_labels": torch.zeros(8, 3).cuda(), "augment_labels": torch.zeros(8, 9).cuda()}
    replay_training(net, torch.zeros(8, 1, 16, 16).cuda(), torch.zeros(8).cuda(), told)
    records = list(islice(train(state, Grey(size=16), how), 60))
    early, late = (sum(r.loss for r in part) for part in (records[:15], records[-15:]))
    assert late < 0.9 * early


def test_a_replayed_network_drops_anew_at_every_call() -> None:
    config = replace(CONFIG, dropout=0.5)
    net = build_network(config, in_channels=3, out_channels=3, height=16, width=16).cuda()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, device="cuda"))
    net.set_compute(torch.bfloat16, channels_last=True)
    x, level = torch.randn(4, *SHAPE, device="cuda"), torch.zeros(4, device="cuda")
    replay_training(net, x, level, {})
    first, second = (net(x, level).detach().clone() for _ in range(2))
    assert float((first - second).abs().mean()) > 0.05 * float(first.abs().mean())
    torch.manual_seed(3)
    third = net(x, level).detach().clone()
    torch.manual_seed(3)
    torch.testing.assert_close(net(x, level).detach(), third, rtol=1e-2, atol=1e-2)


def test_no_step_waits_for_the_device() -> None:
    how = plan(classes=3)
    state = TrainState.start(network(channels=1, classes=3, augment=9).cuda(), how)
    records = train(state, Grey(size=16), how)
    for _ in range(3):
        next(records)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            next(records)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.step == 13


def test_sampling_waits_for_the_device_only_at_its_end() -> None:
    denoise = edm_preconditioned(network().cuda().eval().requires_grad_(False))
    grid = karras(6)
    from sfumato.randomness import Noise
    from sfumato.sampling import sample, start_from_prior

    noise = Noise((0, 1))
    x = start_from_prior(denoise, grid[0], SHAPE, noise, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = sample(denoise, Heun(), grid, x)
        for _ in range(5):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert next(steps).x.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replayed_network_answers_as_the_network(dtype: torch.dtype) -> None:
    net = network(classes=3).cuda().eval().requires_grad_(False)
    net.set_compute(dtype, channels_last=dtype is torch.bfloat16)
    replayed, answers = Graphed(net), list[tuple[Tensor, Tensor]]()
    with torch.no_grad():
        for call in range(6):
            x = torch.randn(4, *SHAPE, device="cuda") * (call + 1)
            level = torch.full((4,), 0.3 * call, device="cuda")
            labels = torch.eye(3, device="cuda")[torch.tensor([0, 1, 2, call % 3])]
            answer = replayed(x, level, class_labels=labels)
            answers.append((answer, net(x, level, class_labels=labels)))
    assert len(replayed._graphs) == 1
    for ours, expected in answers:
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_gradients_pass_a_replayed_network() -> None:
    net = network().cuda().eval()
    x = torch.randn(2, *SHAPE, device="cuda", requires_grad=True)
    Graphed(net)(x, torch.zeros(2, device="cuda")).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


def test_pictures_are_those_of_a_cpu() -> None:
    made = []
    for device in ("cpu", "cuda"):
        net = network().to(device).eval().requires_grad_(False)
        denoise = edm_preconditioned(Graphed(net))
        (x,) = generate(denoise, Heun(), karras(6), SHAPE, range(4), batch=4, device=device)
        made.append(x.cpu())
    torch.testing.assert_close(made[1], made[0], rtol=1e-3, atol=2e-3)
