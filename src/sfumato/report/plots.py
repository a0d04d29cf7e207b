"""Plots of a training run as SVG, drawn through Figure objects: no pyplot, no global state.

Colours are Okabe and Ito's, told apart by colour-blind readers.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfumato.errors import MissingExtraError
from sfumato.report.words import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, SKY, PINK = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7"
INK, SOFT, FAINT = "#33302c", "#8a847c", "#e6e1da"
_COLOURS = (BLUE, ORANGE, GREEN, SKY, PINK, INK, SOFT)


def training_curve(images: ArrayLike, loss: ArrayLike) -> bytes:
    """SVG of the loss [n] against images seen [n]: every record lightly, their trend on top.

    Records that are not finite (skipped steps) are left out.
    """
    x, y = _finite(images, loss)
    figure, axes = _new_figure(6.4, 3.2)
    if len(x) > 20:
        axes.plot(x, y, color=SKY, alpha=0.45, linewidth=0.8, label="logged loss")
        axes.plot(x, _smooth(y), color=BLUE, linewidth=2, label="trend")
        # The first few losses are often huge: let the axis show the rest.
        low, high = float(y.min()), float(np.quantile(y, 0.98))
        if high > low:
            axes.set_ylim(low - 0.06 * (high - low), high + 0.1 * (high - low))
        _legend(axes)
    else:
        axes.plot(x, y, color=BLUE, linewidth=2, marker="o", markersize=4)
    axes.set_xlabel("images seen")
    axes.set_ylabel("training loss")
    axes.xaxis.set_major_formatter(_thousands())
    return _svg(figure)


def quality_curve(images: ArrayLike, distance: ArrayLike) -> bytes:
    """SVG of the Fréchet distance [n] against images seen [n], the smallest marked."""
    x, y = _finite(images, distance)
    figure, axes = _new_figure(6.4, 3.2)
    axes.plot(x, y, color=BLUE, linewidth=2, marker="o", markersize=4)
    best = int(y.argmin())
    axes.plot(x[best], y[best], color=ORANGE, marker="o", markersize=8, linestyle="", label="best")
    axes.set_xlabel("images seen")
    axes.set_ylabel("Fréchet distance")
    axes.xaxis.set_major_formatter(_thousands())
    _legend(axes)
    return _svg(figure)


def quality_by_calls(
    series: Mapping[str, Sequence[tuple[int, float]]], measure: str = "Fréchet distance"
) -> bytes:
    """SVG of a measure of each named sampler against network calls, both logarithmic."""
    figure, axes = _new_figure(6.4, 4.0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    markers = "os^Dv<>"
    for index, (name, points) in enumerate(series.items()):
        calls, values = zip(*sorted(points), strict=True)
        colour, marker = _COLOURS[index % 7], markers[index // 7 % 7]
        axes.plot(
            calls, values, linewidth=1.8, markersize=4.5, label=name, color=colour, marker=marker
        )
    every = sorted({calls for points in series.values() for calls, _ in points})
    axes.set_xticks(every, [str(calls) for calls in every])
    axes.minorticks_off()
    axes.set_xlabel("network calls per image")
    axes.set_ylabel(measure)
    _legend(axes)
    return _svg(figure)


def by_training_time(series: Mapping[str, Sequence[tuple[float, float]]], measure: str) -> bytes:
    """SVG of a measure of each named network against the seconds it was trained, logarithmic."""
    figure, axes = _new_figure(6.4, 3.6)
    axes.set_xscale("log")
    for colour, (name, points) in zip(cycle(_COLOURS), series.items(), strict=False):
        axes.plot(*zip(*sorted(points), strict=True), label=name, color=colour, marker="o",
                  linewidth=1.8, markersize=4.5)  # fmt: skip
    axes.set_xlabel("training time, seconds")
    axes.set_ylabel(measure)
    _legend(axes)
    return _svg(figure)


def truncation_by_level(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> bytes:
    """SVG of the error [n] of each named kind of step against the level [n] it starts from."""
    figure, axes = _new_figure(6.4, 4.0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    kinds = list(dict.fromkeys(name.partition(",")[0] for name in series))
    shades = list(dict.fromkeys(name.partition(",")[2] for name in series))
    for name, (sigmas, errors) in series.items():
        kind, _, shade = name.partition(",")
        axes.plot(
            sigmas,
            errors,
            label=name,
            linewidth=1.6,
            color=_COLOURS[shades.index(shade) % 7],
            linestyle=("-", "--", ":")[kinds.index(kind) % 3],
        )
    axes.set_xlabel("noise level σ where the step starts")
    axes.set_ylabel("what it misses by, RMSE")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=2)
    return _svg(figure)


def bits_by_level(sigma: ArrayLike, bits: ArrayLike) -> bytes:
    """SVG of bits per dimension and unit of ln sigma [n] at noise levels sigma [n]."""
    x, y = _finite(sigma, bits)
    figure, axes = _new_figure(6.4, 3.2)
    axes.set_xscale("log")
    axes.fill_between(x, 0, y, color=SKY, alpha=0.3, linewidth=0)
    axes.plot(x, y, color=BLUE, linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("noise level σ (data units, images in [−1, 1])")
    axes.set_ylabel("bits per dimension, per unit of ln σ")
    return _svg(figure)


def rate_against_distortion(rate: ArrayLike, distortion: ArrayLike) -> bytes:
    """SVG of the RMSE [n] on the 0..255 scale against bits per dimension received [n]."""
    x, y = _finite(rate, distortion)
    figure, axes = _new_figure(6.4, 3.2)
    axes.plot(x, y, color=BLUE, linewidth=2)
    axes.set_xlabel("bits per dimension received")
    axes.set_ylabel("RMSE of the prediction, of 255")
    axes.set_ylim(bottom=0)
    return _svg(figure)


def level_loss(sigma: ArrayLike, loss: ArrayLike, density: ArrayLike | None = None) -> bytes:
    """SVG of the loss [n] per noise level sigma [n] (data units, logarithmic axis).

    `density` [n] is the training density of log sigma, drawn as an area: where it is high and the
    loss is flat, training effort is wasted; where the loss falls outside it, effort is missing.
    """
    x, y = _finite(sigma, loss)
    figure, axes = _new_figure(6.4, 3.2)
    axes.set_xscale("log")
    axes.plot(x, y, color=BLUE, linewidth=2, marker="o", markersize=3.5, label="loss")
    axes.set_xlabel("noise level σ (data units, images in [−1, 1])")
    axes.set_ylabel("loss", color=BLUE)
    if density is not None:
        at, height = _finite(sigma, density)
        twin = axes.twinx()
        twin.fill_between(at, 0, height, color=ORANGE, alpha=0.18, linewidth=0)
        twin.plot(at, height, color=ORANGE, linewidth=1.4, label="training density")
        twin.set_ylim(bottom=0)
        _style(twin)
        twin.set_ylabel("training density of ln σ", color=ORANGE)
        twin.grid(visible=False)
        axes.set_zorder(twin.get_zorder() + 1)
        axes.patch.set_visible(False)
    return _svg(figure)


def class_shares(
    names: Sequence[str],
    shares: ArrayLike,
    reference: ArrayLike | None = None,
) -> bytes:
    """SVG of horizontal bars, the share (0 to 1) of each class among the samples.

    `reference` marks the same share among real images.
    """
    values = np.asarray(shares, float) * 100
    places = np.arange(len(names))
    figure, axes = _new_figure(6.4, 0.9 + 0.3 * len(names))
    axes.barh(places, values, height=0.62, color=BLUE, label="samples")
    top = float(values.max(initial=1.0))
    if reference is not None:
        real = np.asarray(reference, float) * 100
        axes.plot(real, places, "|", color=INK, markersize=13, markeredgewidth=2, label="real")
        top = max(top, float(real.max(initial=0.0)))
    axes.set_yticks(places, list(names))
    axes.invert_yaxis()
    axes.set_xlim(0, top * 1.05)
    axes.set_xlabel("share of images, %")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    if reference is not None:
        _legend(axes, below=True)
    return _svg(figure)


def time_split(seconds: Mapping[str, float]) -> bytes:
    """SVG of one bar divided by where the time went (name: seconds), longest first."""
    parts = sorted(((k, v) for k, v in seconds.items() if v > 0), key=lambda part: -part[1])
    total = sum(v for _, v in parts) or 1.0
    figure, axes = _new_figure(6.4, 1.5)
    left = 0.0
    palette = (BLUE, ORANGE, GREEN, SKY, PINK, SOFT)
    for i, (name, value) in enumerate(parts):
        label = f"{name}  {duration(value)} ({100 * value / total:.0f} %)"
        color = palette[min(i, len(palette) - 1)]
        axes.barh(0, value / total, left=left, height=0.5, color=color, edgecolor="white",
                  linewidth=1.5, label=label)  # fmt: skip
        left += value / total
    axes.set_xlim(0, 1)
    axes.axis("off")
    if parts:
        _legend(axes, below=True)
    return _svg(figure)


def _smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a centred window of about a twentieth of the curve, narrower at its ends."""
    half = max(1, len(y) // 40)
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    reach = np.minimum(half, np.minimum(at, len(y) - 1 - at) + half // 2)
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(y))
    return (total[high] - total[low]) / (high - low)


def _finite(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    if a.shape != b.shape:
        raise ValueError(f"a curve needs as many x as y values, got {len(a)} and {len(b)}")
    keep = np.isfinite(a) & np.isfinite(b)
    return a[keep], b[keep]


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "train", "drawing plots") from None
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=9.5)
    axes.yaxis.label.set(color=INK, fontsize=9.5)
    axes.grid(visible=True, color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: Axes, below: bool = False) -> None:
    if below:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14 if axes.axison else 0.05),
                    ncols=3, frameon=False, fontsize=9, labelcolor=INK)  # fmt: skip
    else:
        axes.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=INK)


def _thousands():
    from matplotlib.ticker import FuncFormatter

    def write(value: float, _position: float) -> str:
        if abs(value) >= 1e6:
            return f"{value / 1e6:g} M"
        return f"{value / 1e3:g} k" if abs(value) >= 1e3 else f"{value:g}"

    return FuncFormatter(write)


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
