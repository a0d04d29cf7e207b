"""The codec against the model's own bound, PNG, WebP, JPEG XL and JPEG.

    python benchmarks/codec.py --run RUN --data TEST.npy --name fashion-mnist

RUN learned its variance on a ladder (iddpm-vlb-tiny); TEST.npy holds images [n, H, W(, 3)].
"""

from __future__ import annotations

import argparse
import io
import math
import time
from pathlib import Path

import imagecodecs
import numpy as np
import torch
from _codec_rows import elbo_of, load_more, payload, searches, sizes, step_bytes, there_and_back
from _shared import Uint8, machine, setting, write_text
from PIL import Image

from sfumato.likelihood import elbo, estimate_elbo, rate_distortion
from sfumato.randomness import noise_for
from sfumato.recipes.compression import (
    Packed,
    load_profile,
    pack,
    prepare,
    preview_sheet,
    previews,
    rmse_255,
    unpack,
)
from sfumato.recipes.loading import load

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parent.parent / "docs"
# Bytes that say no more than the kind of file and its size.
CONTAINERS = {"PNG": 57, "WEBP": 20, "JPEG": 0}


def coded(images: Uint8, form: str, **how: object) -> float:
    """Bytes an image as a file of this form, less its container."""
    total = 0
    for image in images:
        memory = io.BytesIO()
        Image.fromarray(image).save(memory, form, **how)
        total += memory.tell() - CONTAINERS[form]
    return total / len(images)


def jpeg_of(images: Uint8, form: str, quality: int) -> tuple[float, float]:
    """Bytes an image without tables and headers, and RMSE."""
    total, miss = 0.0, 0.0
    for image in images:
        memory = io.BytesIO()
        extra = {"optimize": True} if form == "JPEG" else {"method": 6}
        Image.fromarray(image).save(memory, form, quality=quality, **extra)
        data = memory.getvalue()
        back = np.asarray(Image.open(io.BytesIO(data)).convert("L" if image.ndim == 2 else "RGB"))
        miss += float(np.square(back.astype(float) - image).mean())
        total += _scan(data, image.ndim) if form == "JPEG" else len(data) - CONTAINERS[form]
    return total / len(images), math.sqrt(miss / len(images))


def _scan(data: bytes, dimensions: int) -> int:
    """Bytes of a JPEG after the last marker: its tables and headers are not counted."""
    return len(data) - data.rindex(b"\xff\xda") - (10 if dimensions == 2 else 14)


def at_rmse(points: list[tuple[float, float]], wanted: float) -> float:
    """Bytes at an RMSE between the measured (bytes, rmse), in log of both; NaN outside."""
    order = sorted(points, key=lambda point: point[1])
    if not order[0][1] <= wanted <= order[-1][1]:
        return math.nan
    rmse = np.log([point[1] for point in order])
    return float(np.exp(np.interp(math.log(wanted), rmse, np.log([p[0] for p in order]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--lossy", type=int, default=48)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--round-trip", type=int, default=500)
    args = parser.parse_args()
    about = machine()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load(args.run)
    profile = load_profile(model) or prepare(model)[0]
    plain, raw = np.load(args.data)[: args.n], load_more(args.data, args.n)
    values = raw[0].size
    bits = 8 / values

    def timed(images: Uint8, **how: object) -> tuple[Packed, float, float]:
        start = time.perf_counter()
        packed = pack(model, profile, images, **how)  # type: ignore[arg-type]
        middle = time.perf_counter()
        back = unpack(model, profile, packed.container)
        end = time.perf_counter()
        assert (back == packed.images).all()
        return packed, (middle - start) / len(images), (end - middle) / len(images)

    some, shown = raw[: args.lossy], plain[: args.lossy]
    others = {
        form: [jpeg_of(shown, form, quality) for quality in (1, 3, 6, 12, 25, 50, 75, 90, 97)]
        for form in ("JPEG", "WEBP")
    }
    x0 = torch.from_numpy(raw).to(torch.float64) / 127.5 - 1
    searched = searches(timed, model, profile, raw, x0[:16])
    together = sizes(timed, raw, profile)
    levels = model.denoiser.range.levels
    assert levels is not None
    whole = elbo(model.denoiser, x0[: args.lossy], levels.flip(0), noise_for(0, args.lossy))
    curve = rate_distortion(whole)
    bound = float(elbo_of(model, profile, x0).mean()) / (values * math.log(2))
    drawn = estimate_elbo(model.denoiser, x0, levels.flip(0), noise_for(0, len(x0)), draws=64)
    own = float(drawn.total.mean()) / (values * math.log(2))

    rows: list[str] = []
    many, up, down = timed(raw)
    assert (many.images == raw).all()
    rows.append(f"| `sfumato compress`, {args.n} images | {bits * payload(many):.3f} | {up:.2f} | "
                f"{down:.2f} |")  # fmt: skip
    single = [timed(raw[i : i + 1]) for i in range(8)]
    one = float(np.mean([payload(packed) for packed, _, _ in single]))
    kinds = {packed.container.header.kind for packed, _, _ in single}
    rows.append(
        f"| `sfumato compress`, one image a file ({', '.join(kinds)}), 8 of them | "
        f"{bits * one:.3f} | {np.mean([u for _, u, _ in single]):.2f} | "
        f"{np.mean([d for _, _, d in single]):.2f} |"
    )
    count = len(profile.sigmas)
    rows.append(f"| the model's bound, its variance corrected, {count} levels | {bound:.3f} | | |")
    jxl = np.mean([len(imagecodecs.jpegxl_encode(i, lossless=True, effort=9)) for i in plain])
    webp = coded(plain, "WEBP", lossless=True, quality=100, method=6)
    rows += [
        f"| JPEG XL, lossless | {bits * float(jxl):.3f} | | |",
        f"| WebP, lossless | {bits * webp:.3f} | | |",
        f"| PNG | {bits * coded(plain, 'PNG', optimize=True):.3f} | | |",
    ]
    lossy: list[str] = []
    measured: list[tuple[float, float]] = []
    most = len(profile.steps) - 1
    for quality in [round(most * part) for part in (0.2, 0.35, 0.5, 0.65, 0.8, 0.95)]:
        packed, up, down = timed(some, quality=quality)
        rmse, size = rmse_255(some, packed.images, model.format), payload(packed)
        measured.append((size, rmse))
        same = step_bytes(model, profile, x0[: args.lossy], quality)
        full = at_rmse([(float(r) * values / 8, float(d)) for r, d in
                        zip(curve.rate, curve.distortion, strict=True) if r > 0], rmse)  # fmt: skip
        cells = [at_rmse(others[form], rmse) for form in ("JPEG", "WEBP")]
        lossy.append(
            f"| {quality} | {rmse:.2f} | {size:.1f} | {size / same:.2f} | {size / full:.2f} | "
            + " | ".join("-" if math.isnan(cell) else f"{cell:.0f}" for cell in cells)
            + f" | {up:.2f} | {down:.2f} |"
        )
    draw(args.name, measured, others, curve, values)
    strip = pack(model, profile, raw[:6], quality=round(most * 0.8))
    sheet = preview_sheet(list(previews(model, profile, strip.container)), model.format, 6, 12)
    (PICTURES / f"codec-{args.name}.png").write_bytes(sheet)
    lines = [
        f"# The codec: {args.name}",
        "",
        setting(
            about,
            f"{torch.get_num_threads()} threads",
            f"busy before: {about['busy_cores']}",
        ),
        "",
        f"`{model.recipe.name}`, {model.images_seen:,} training images; test images of {values:,} "
        "values. Without headers: for PNG 57 bytes, WebP 20, JPEG all but the scan.",
        "",
        "## Without loss",
        "",
        "| | bits a value | s an image, coding | decoding |",
        "|---|---:|---:|---:|",
        *rows,
        "",
        f"The bound of the model as trained, on its {len(levels)} levels: {own:.3f} (64 of them "
        "drawn for each of these images).",
        "",
        "## To few bits",
        "",
        f"{args.lossy} images in a file. Same: over the bound for the same levels. Full: over "
        "the bound of the whole ladder at the same RMSE. JPEG and WebP: bytes at the same RMSE, - "
        "where they do not reach it.",
        "",
        "| quality | RMSE of 255 | bytes an image | same | full | JPEG | WebP | s, coding | s, "
        "decoding |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *lossy,
        "",
        "Candidates searched among (`--search`), against time: 16 images, each at half of the "
        "qualities.",
        "",
        "| candidates | bytes an image | over the same levels' bound | s an image, coding | "
        "decoding |",
        "|---:|---:|---:|---:|---:|",
        *searched,
        "",
        "## Images a file",
        "",
        "Seconds an image, coding and decoding.",
        "",
        "| images | to half of the qualities | to the last | without loss |",
        "|---:|---:|---:|---:|",
        *together,
        "",
        *there_and_back(timed, load_more(args.data, args.round_trip), profile),
    ]
    write_text(RESULTS / f"codec_{args.name}.md", "\n".join(lines))
    print("\n".join(lines))


def draw(
    name: str, measured: list[tuple[float, float]], others: dict[str, list[tuple[float, float]]],
    curve: object, values: int,
) -> None:  # fmt: skip
    """Rate against distortion, to docs/."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    rate = [float(r) * values / 8 for r in curve.rate]  # type: ignore[attr-defined]
    kept = [(r, float(d)) for r, d in zip(rate, curve.distortion, strict=True) if r > 4]  # type: ignore[attr-defined]
    axes.plot(*zip(*kept, strict=True), "--", color="#8a847c", label="the model's bound")
    axes.plot(*zip(*measured, strict=True), "o-", color="#0072B2", label="sfumato compress")
    for (form, points), colour in zip(others.items(), ("#D55E00", "#009E73"), strict=True):
        axes.plot(*zip(*points, strict=True), "s-", color=colour, label=form, markersize=3.5)
    axes.set_xlabel("bytes an image, without headers")
    axes.set_ylabel("RMSE, of 255")
    axes.legend(frameon=False)
    axes.grid(visible=True, color="#e6e1da")
    figure.savefig(PICTURES / f"codec-{name}-rate.png", dpi=110)


if __name__ == "__main__":
    main()
