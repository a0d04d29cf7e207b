"""What to change, in plain words, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from sfumato.recipes.bench.result import Result

FASTER = 1.15
"""A change is worth telling from so much on."""
WAITING = 0.05
OVERHEAD = 0.15
SMALL_SHARE = 0.3
BUSY = 1.5
GRANTED = 0.7


def advice(result: Result) -> list[str]:
    """Return sentences on what to change, the most rewarding first; one if there is nothing."""
    found = sorted(_all(result), key=lambda item: -item[0])
    return [text for _, text in found] or ["Nothing to change: none of the usual losses was found."]


def _all(r: Result) -> Iterator[tuple[float, str]]:
    """Every remark with the factor that following it may gain."""
    if r.spread > BUSY:
        yield (
            100.0,
            f"The slowest round took {r.spread:.1f} times the usual: the machine does other work, "
            "and all speeds are too low. Measure again when it is idle.",
        )
    elif r.granted < GRANTED:
        yield (
            100.0,
            f"The process got {100 * r.granted:.0f} % of the time of its {r.threads} threads: the "
            "machine does other work, and all speeds are too low. Measure again when it is idle.",
        )
    if r.unused_cuda:
        yield 50.0, "A GPU is here and was not used: --device cuda."
    if r.device == "cpu" and r.threads < r.cores:
        yield (
            r.cores / r.threads,
            f"PyTorch uses {r.threads} of {r.cores} cores: --threads {r.cores}, or unset "
            "OMP_NUM_THREADS.",
        )
    if r.no_kernels:
        yield 1.5, f"Sfumato's own kernels are not used: {r.no_kernels}."
    yield from _precision(r)
    if r.step.waited >= WAITING:
        yield (
            1 / max(1 - r.step.waited, 0.01),
            f"Data waits: {100 * r.step.waited:.0f} % of a step goes into waiting for {r.data}. "
            "Convert the images to one .npy array of the size that is trained on, put them on a "
            "faster disk, or give loading more cores.",
        )
    # Where the recipe's own batch did not fit the time, a larger one is what it has.
    if r.larger_batch >= FASTER and r.batch >= r.batch_asked:
        yield (
            r.larger_batch,
            f"The batch is small: with {2 * r.batch} images instead of {r.batch} each costs "
            f"{r.larger_batch:.2f} times less: --batch {2 * r.batch} or more.",
        )
    yield from _overhead(r)
    yield from _network(r)


def _precision(r: Result) -> Iterator[tuple[float, str]]:
    plain = [name for name in r.rates if name.startswith("float32")]
    fast = [name for name in r.rates if not name.startswith("float32")]
    if not plain or not fast:
        return
    slow = max(r.rates[name].training for name in plain)
    best = max(fast, key=lambda name: r.rates[name].training)
    gain = r.rates[best].training / slow
    dtype = best.split()[0]
    if gain >= FASTER and r.precision == "float32":
        yield gain, f"{dtype} trains {gain:.1f} times as fast here: --precision {dtype}."
    elif gain >= FASTER and r.precision == "auto":
        yield (
            1.0,
            f"{dtype} trains {gain:.1f} times as fast as float32 here; the default, --precision "
            "auto, finds that out by itself.",
        )
    elif gain < 1 / FASTER and r.precision != "auto":
        yield 1 / gain, f"float32 trains {1 / gain:.1f} times as fast here: --precision float32."


def _overhead(r: Result) -> Iterator[tuple[float, str]]:
    """Judged at the recipe's own batch, which may be larger than the one that was timed."""
    fixed = r.step.optimizer + r.step.average
    whole = fixed + r.step.gradient * max(r.batch_asked / r.batch, 1)
    share = fixed / whole if whole else 0.0
    if share >= OVERHEAD:
        yield (
            1 / max(1 - share, 0.01),
            f"Optimizer and moving average take {100 * share:.0f} % of a step of "
            f"{max(r.batch, r.batch_asked)} images, and not longer with more of them: a larger "
            "--batch"
            + (
                ", or --optimizer.kind adam in place of muon."
                if r.step.optimizer > 4 * r.step.average
                else "."
            ),
        )


def _network(r: Result) -> Iterator[tuple[float, str]]:
    fraction = r.fraction(r.fastest, "conv", training=True)
    shares = dict(r.operators.get("training", {}))
    useful = sum(shares.pop(name, 0.0) for name in ("convolutions", "matrix products", "attention"))
    for name in ("optimizer", "moving average"):
        shares.pop(name, None)
    if fraction < SMALL_SHARE and shares:
        largest = ", ".join(f"{n} {100 * s:.0f} %" for n, s in list(shares.items())[:3])
        yield (
            1.0,
            f"Training reaches {100 * fraction:.0f} % of the rate of convolutions of 128 channels: "
            f"{100 * useful:.0f} % of its time are convolutions and products, memory traffic has "
            f"the rest ({largest}). Wider networks use the machine better: twice the width is "
            "four times the arithmetic for twice the traffic.",
        )
