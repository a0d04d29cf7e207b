"""The result as the lines that `sfumato bench` prints."""

from __future__ import annotations

from sfumato.recipes.bench.advice import advice
from sfumato.recipes.bench.result import Result


def in_lines(r: Result) -> list[str]:
    """Return the tables and the advice."""
    return [*_machine(r), "", *_network(r), "", *_step(r), "", *_operators(r), "", *_advice(r)]


def flops(rate: float) -> str:
    """Return FLOP/s as GFLOP/s, or TFLOP/s from a thousand on."""
    return f"{rate / 1e12:,.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:,.0f} GFLOP/s"


def _machine(r: Result) -> list[str]:
    about = r.environment
    where = ", ".join(
        f"{name} {about[name]}"
        for name in ("device", "threads", "torch", "kernels")
        if name in about
    )
    lines = [f"ceilings ({where})"] if where else ["ceilings"]
    for name, rate in r.ceilings.items():
        lines.append(
            f"  {name:<20} {rate / 1e9:>9,.1f} GB/s read and written"
            if name == "copy"
            else f"  {name:<20} {flops(rate):>16}"
        )
    return lines


def _network(r: Result) -> list[str]:
    shape = " x ".join(map(str, r.shape))
    lines = [
        f"network of {r.name}, {shape}, {r.parameters / 1e6:.2f} M parameters, "
        f"{r.flops_forward / 1e9:.3g} GFLOP an image forward, {r.flops_training / 1e9:.3g} with "
        f"backward; batch {r.batch}",
        f"  {'':<15} {'sampling call':>16} {'of gemm':>9} {'of conv':>9} "
        f"{'forward+backward':>18} {'of gemm':>9} {'of conv':>9}",
    ]
    for name, rates in r.rates.items():
        part = [
            f"{100 * r.fraction(name, ceiling, training=training):.0f} %"
            for training in (False, True)
            for ceiling in ("gemm", "conv")
        ]
        lines.append(
            f"  {name:<15} {rates.forward:>9.4g} img/s {part[0]:>9} {part[1]:>9} "
            f"{rates.training:>12.4g} img/s {part[2]:>9} {part[3]:>9}"
        )
    return lines


def _step(r: Result) -> list[str]:
    s = r.step
    rows = {
        "forward, backward": s.gradient,
        "optimizer": s.optimizer,
        "moving average": s.average,
        "waiting for data": s.waited * s.step,
    }
    lines = [
        f"training step in {r.fastest}: {1000 * s.step:.4g} ms, {r.batch / s.step:.4g} images/s "
        f"({r.data})"
    ]
    for name, seconds in rows.items():
        lines.append(f"  {name:<20} {1000 * seconds:>9.4g} ms {100 * seconds / s.step:>5.1f} %")
    return lines


def _operators(r: Result) -> list[str]:
    """Shares of both kinds, a class a line, largest in training first."""
    training, sampling = (dict(r.operators.get(k, {})) for k in ("training", "sampling"))
    lines = [f"what the time goes to {'training':>10} {'sampling':>10}"]
    for name in dict.fromkeys([*training, *sampling]):
        both = training.get(name, 0.0), sampling.get(name, 0.0)
        if max(both) >= 0.005:
            lines.append(f"  {name:<19} {100 * both[0]:>8.1f} % {100 * both[1]:>8.1f} %")
    return lines


def _advice(r: Result) -> list[str]:
    return ["what to change", *(f"  {number}. {text}" for number, text in enumerate(advice(r), 1))]
