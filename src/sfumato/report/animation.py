"""A denoising trajectory as an animated GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from sfumato.report.grid import UInt8, to_pil


def gif_bytes(frames: Sequence[UInt8], seconds: float = 3.0, hold: float = 2.0) -> bytes:
    """Grids [H, W, 1 or 3] of one shape as a looping GIF; the last is held for `hold` seconds.

    `seconds` is the length of the rest. Grey is exact; colour is reduced to each frame's own 256.
    Equal neighbouring frames are merged, their time kept.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ValueError(f"frames differ in shape: {sorted({frame.shape for frame in frames})}")
    # Browsers slow down frames below 20 ms; GIF counts in hundredths of a second.
    each = max(20, round(1000 * seconds / max(1, len(frames) - 1) / 10) * 10)
    durations = [each] * (len(frames) - 1) + [round(1000 * hold)]
    first, *rest = [_paletted(to_pil(frame)) for frame in frames]
    buffer = io.BytesIO()
    first.save(
        buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, disposal=1
    )
    return buffer.getvalue()


def _paletted(image: Image.Image) -> Image.Image:
    if image.mode == "L":
        return image
    return image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
