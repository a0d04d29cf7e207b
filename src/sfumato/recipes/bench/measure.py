"""Measure a recipe's network: ceilings, arithmetic, the parts of a step, operators."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.data.images import Images
from sfumato.errors import ConfigError
from sfumato.native import gpu
from sfumato.native.library import unavailable
from sfumato.networks.base import Network
from sfumato.recipes.bench.result import Rates, Result, StepTimes
from sfumato.recipes.bench.subject import Subject, feed
from sfumato.recipes.build import network_of
from sfumato.recipes.environment import describe, tune_device
from sfumato.recipes.plan import decay_of, plan_of
from sfumato.speed.ceilings import Work, ceilings
from sfumato.speed.flops import forward_flops, training_flops
from sfumato.speed.operators import shares
from sfumato.speed.steps import forward_call, gradient_call, inputs
from sfumato.speed.timing import Timing, interleaved, timed
from sfumato.training.loop import train
from sfumato.training.precision import Precision
from sfumato.training.state import TrainState

ARITHMETICS = {
    "float32 NCHW": Precision(),
    "float32 NHWC": Precision(channels_last=True),
    "bfloat16 NHWC": Precision("bfloat16", channels_last=True),
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """batch: images a call, 0 for the recipe's or as many as fit `seconds`, all of it together."""

    batch: int = 0
    seconds: float = 30.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch < 0 or not self.seconds > 0:
            raise ConfigError(
                f"batch must be 0 (as many as fit) or more and seconds above 0, not {self.batch} "
                f"and {self.seconds:g}"
            )


def measure(
    subject: Subject,
    settings: Settings,
    images: Images | None = None,
    say: Say | None = None,
    works: Mapping[str, Work] | None = None,
) -> Result:
    """Measure what `sfumato bench` prints; `images` are trained on, synthetic ones if None.

    `say` hears what is being done; `works` stand in for `speed.ceilings.ceilings`, by the same
    names. Nothing is learned: weights are thrown away. Raises ConfigError for images of another
    shape than the subject's.
    """
    say = say or (lambda text: None)
    device, seconds = settings.device, settings.seconds
    tune_device(device)
    say("ceilings of the machine")
    works = ceilings(device) if works is None else works
    wall, busy = time.perf_counter(), time.process_time()
    times = interleaved({n: w.call for n, w in works.items()}, 0.2 * seconds, device=device)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    limits = {name: times[name].rate(work.amount) for name, work in works.items()}
    spread = max(max(t.seconds) / t.median for t in times.values())

    bench = _Bench(subject, device)
    asked = settings.batch or subject.recipe.micro_batch or subject.recipe.batch
    batch = settings.batch or bench.fitting(asked, 0.4 * seconds)
    if batch < asked:
        say(f"batch {batch}, not {asked}, to be done in {seconds:.0f} s")
    say(f"forward and backward in {len(ARITHMETICS)} arithmetics, batch {batch}")
    while (rates := bench.rates(batch, 0.35 * seconds)) is None:
        batch = -(-batch // 2)
        say(f"that does not fit into memory: batch {batch}")
    fastest = max(rates, key=lambda name: rates[name].training)
    ARITHMETICS[fastest].apply(bench.network)
    say(f"twice the batch, in {fastest}")
    larger = bench.larger(batch, rates[fastest].training, 0.1 * seconds)
    say("the training loop, and the parts of its step")
    step, in_training = bench.step(batch, images, 0.25 * seconds)
    say("what the time goes to")
    x, label, told = bench.inputs(batch)
    operators = {
        "sampling": shares(forward_call(bench.network, x, label, told), device),
        "training": in_training,
    }
    return Result(
        name=subject.name,
        shape=subject.shape,
        parameters=sum(p.numel() for p in bench.network.parameters()),
        flops_forward=forward_flops(bench.network, subject.shape, subject.condition),
        flops_training=training_flops(bench.network, subject.shape, subject.condition),
        batch=batch,
        batch_asked=asked,
        precision=subject.recipe.precision,
        ceilings=limits,
        rates=rates,
        step=step,
        operators=operators,
        larger_batch=larger,
        data="synthetic images in memory" if images is None else images.describe(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        device=device,
        unused_cuda=device == "cpu" and torch.cuda.is_available(),
        no_kernels=unavailable("norm") if device == "cpu" else gpu.why_not(device),
        spread=spread,
        granted=min(busy / (wall * torch.get_num_threads()), 1.0) if device == "cpu" else 1.0,
        environment=describe(device),
    )


class _Bench:
    """The network of a subject on its device, and what is timed of it."""

    def __init__(self, subject: Subject, device: str) -> None:
        self.subject, self.device = subject, device
        self.network: Network = network_of(
            subject.recipe,
            subject.shape,
            subject.classes,
            condition=subject.condition,
            device=device,
        )

    def inputs(self, batch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Random images, noise labels and conditions."""
        forms: dict[str, Sequence[int]] = {}
        if self.subject.classes:
            forms["class_labels"] = (self.subject.classes,)
        if self.subject.condition:
            forms["image"] = (self.subject.condition, *self.subject.shape[1:])
        return inputs(self.subject.shape, batch, self.device, forms)

    def fitting(self, asked: int, seconds: float) -> int:
        """The largest power-of-two share of a batch of which all calls fit the seconds."""
        least = probe = min(asked, 2)
        each = self._each(probe)
        # A few images tell little of a GPU, which they leave idle.
        while self.device.startswith("cuda") and probe < asked:
            more = min(4 * probe, asked)
            try:
                quicker = self._each(more)
            except torch.OutOfMemoryError:
                break
            if quicker > 0.9 * each:
                break
            probe, each = more, quicker
        # Two calls to warm up and three rounds of them, forward costing a third, in three ways.
        fits = seconds / (each * 5 * 1.33 * len(ARITHMETICS))
        batch = asked
        while batch > least and batch > fits:
            batch = -(-batch // 2)
        return batch

    def _each(self, batch: int) -> float:
        """Seconds an image of forward and backward."""
        x, label, told = self.inputs(batch)
        call = gradient_call(self.network, x, label, told)
        timed(call, self.device)
        return timed(call, self.device) / batch

    def rates(self, batch: int, seconds: float) -> dict[str, Rates] | None:
        """Images a second by arithmetic, forward and training, all in turns.

        None where several images do not fit into memory.
        """
        try:
            return self._rates(batch, seconds)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        torch.cuda.empty_cache()
        return None

    def _rates(self, batch: int, seconds: float) -> dict[str, Rates]:
        x, label, told = self.inputs(batch)
        calls: dict[str, Callable[[], object]] = {}
        for name, precision in ARITHMETICS.items():
            for kind, make in (("forward", forward_call), ("training", gradient_call)):
                calls[f"{name} {kind}"] = self._set(precision, make(self.network, x, label, told))
        times = interleaved(calls, seconds, device=self.device)
        return {
            name: Rates(times[f"{name} forward"].rate(batch), times[f"{name} training"].rate(batch))
            for name in ARITHMETICS
        }

    def _set(self, precision: Precision, call: Callable[[], object]) -> Callable[[], object]:
        def both() -> object:
            precision.apply(self.network)
            return call()

        return both

    def larger(self, batch: int, rate: float, seconds: float) -> float:
        """Images a second with twice the batch over those with it; 0 where it is too large."""
        if 3 * 3 * batch / rate > 3 * seconds:
            return 0.0
        try:
            calls = {
                str(n): gradient_call(self.network, *self.inputs(n)) for n in (batch, 2 * batch)
            }
            times = interleaved(calls, seconds, device=self.device)
        except torch.OutOfMemoryError:
            return 0.0
        return 2 * times[str(batch)].median / times[str(2 * batch)].median

    def step(
        self, batch: int, images: Images | None, seconds: float
    ) -> tuple[StepTimes, dict[str, float]]:
        """The training loop's step, its parts, and its operators; the weights change."""
        subject, network = self.subject, self.network
        recipe = replace(subject.recipe, batch=batch, micro_batch=0)
        plan = plan_of(recipe, 1 / 255, 0, decay_of(recipe))
        state = TrainState.start(network, plan)
        with feed(subject, batch, images, self.device) as batches:
            loop = train(state, batches, plan)
            x, label, told = self.inputs(batch)
            waited: list[float] = []

            def whole() -> None:
                waited.append(next(loop).waited_share)

            # On a network of its own: between two steps the gradients are the loop's.
            apart = copy.deepcopy(network)
            gradient = gradient_call(apart, x, label, told)
            first = {"step": whole, "gradient": gradient}
            times = interleaved(first, 0.7 * seconds, device=self.device)
            loop.close()
            waited = waited[2:] or waited
            # The update by itself needs gradients, which the loop has dropped.
            network.train()
            network(x, label, **told).square().mean().backward()
            rest = {
                "optimizer": state.optimizer.step,
                "average": lambda: state.ema.update(network, 0.999),
            }
            times |= interleaved(rest, 0.3 * seconds, device=self.device)
            loop = train(state, batches, plan)
            next(loop)
            found = shares(lambda: next(loop), self.device)
        steps = StepTimes(
            step=times["step"].median,
            gradient=times["gradient"].median,
            optimizer=times["optimizer"].median,
            average=times["average"].median,
            waited=Timing(waited).median,
        )
        return steps, found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
