"""Triton's kernels for a GPU: group norm with all that follows it, and a residual block's end.

Images lie channels last: pixel p and channel c of image b at (b P + p) C + c. To be imported only
where Triton is. A program of the norm has KB channels of one image, whole groups of D of them.
"""
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportPossiblyUnboundVariable=false, reportMissingImports=false, reportUntypedFunctionDecorator=false

import triton
import triton.language as tl


@triton.jit
def _mixed(h):
    """A hash of 32 bits that spreads every bit over all of them."""
    h ^= h >> 16
    h *= 0x7FEB352D
    h ^= h >> 15
    h *= 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def _sequence(seed_at, image):
    """Where an image's sequence of hashes starts, and the odd stride it goes by."""
    seed = tl.load(seed_at)
    start = _mixed(_mixed(image.to(tl.uint32) + seed.to(tl.uint32)) + (seed >> 32).to(tl.uint32))
    return start, _mixed(start + 0x9E3779B9) | 1


@triton.jit
def _kept(place, start, stride, kept):
    """Whether the element at a place of its image is kept: `kept` in 65536 are."""
    return (_mixed(place.to(tl.uint32) * stride + start) & 0xFFFF).to(tl.int32) < kept


@triton.jit
def norm_forward(
    x_at, offset_at, scale_at, shift_at, seed_at, y_at, moments_at,
    P, C, G, scale_row, kept, gain, eps,
    D: tl.constexpr, KB: tl.constexpr, CB: tl.constexpr, BP: tl.constexpr,
    SILU: tl.constexpr, DROP: tl.constexpr, OFFSET: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """Write y = dropout(act(norm(x + offset) scale + shift)), and moments [3, B, C].

    These are every channel's mean, its group's, and 1 / its group's deviation.
    """
    image = tl.program_id(0)
    lane = tl.arange(0, CB)
    c = tl.program_id(1) * KB + lane
    real = (lane < KB) & (c < C)
    base = image.to(tl.int64) * P * C
    rows = tl.arange(0, BP)

    # Sums of differences from the first pixel, which lose no digits where the mean is large.
    pivot = tl.load(x_at + base + c, mask=real, other=0).to(tl.float32)
    sums, squares = tl.zeros([BP, CB], tl.float32), tl.zeros([BP, CB], tl.float32)
    if ONCE:
        inside = (rows < P)[:, None] & real[None, :]
        tile = tl.load(x_at + base + rows[:, None] * C + c[None, :], mask=inside, other=0)
        apart = tl.where(inside, tile.to(tl.float32) - pivot[None, :], 0.0)
        sums, squares = apart, apart * apart
    else:
        for first in range(0, P, BP):
            p = first + rows
            inside = (p < P)[:, None] & real[None, :]
            tile = tl.load(x_at + base + p[:, None] * C + c[None, :], mask=inside, other=0)
            apart = tl.where(inside, tile.to(tl.float32) - pivot[None, :], 0.0)
            sums += apart
            squares += apart * apart
    mean = tl.sum(sums, 0) / P
    spread = tl.maximum(tl.sum(squares, 0) / P - mean * mean, 0.0)
    mean += pivot
    offset = tl.zeros([CB], tl.float32)
    if OFFSET:
        offset = tl.load(offset_at + image * C + c, mask=real, other=0)
        mean += offset

    # Of channels, of their groups.
    together = (lane[:, None] // D == lane[None, :] // D) & real[None, :]
    centre = tl.sum(tl.where(together, mean[None, :], 0.0), 1) / D
    away = mean[None, :] - centre[:, None]
    var = tl.sum(tl.where(together, spread[None, :] + away * away, 0.0), 1) / D
    inverse = tl.rsqrt(var + eps)

    B = tl.num_programs(0)
    at = moments_at + image * C + c
    tl.store(at, mean, mask=real)
    tl.store(at + B * C, centre, mask=real)
    tl.store(at + 2 * B * C, inverse, mask=real)

    scale = tl.load(scale_at + image * scale_row + c, mask=real, other=0)
    shift = tl.load(shift_at + image * scale_row + c, mask=real, other=0)
    factor = scale * inverse
    rest = shift + (offset - centre) * factor
    start, stride = 0, 0
    if DROP:
        start, stride = _sequence(seed_at, image)
    for first in range(0, P, BP):
        p = first + rows
        inside = (p < P)[:, None] & real[None, :]
        place = p[:, None] * C + c[None, :]
        if not ONCE:
            tile = tl.load(x_at + base + place, mask=inside, other=0)
        y = tile.to(tl.float32) * factor[None, :] + rest[None, :]
        if SILU:
            y = y * tl.sigmoid(y)
        if DROP:
            y = tl.where(_kept(place, start, stride, kept), y * gain, 0.0)
        tl.store(y_at + base + place, y.to(y_at.dtype.element_ty), mask=inside)


@triton.jit
def _slopes(
    tile, dy, place, factor, rest, centre, inverse, start, stride, kept, gain,
    SILU: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """x normalised, and the gradient of what scale and shift make of it."""
    x = tile.to(tl.float32)
    dz = dy.to(tl.float32)
    if DROP:
        dz = tl.where(_kept(place, start, stride, kept), dz * gain, 0.0)
    if SILU:
        z = x * factor[None, :] + rest[None, :]
        s = tl.sigmoid(z)
        dz = dz * (s * (1 + z * (1 - s)))
    return (x - centre[None, :]) * inverse[None, :], dz


@triton.jit
def norm_backward(
    x_at, offset_at, scale_at, shift_at, seed_at, moments_at, dy_at, skip_at,
    dx_at, dscale_at, dshift_at, doffset_at,
    P, C, G, scale_row, kept, gain,
    D: tl.constexpr, KB: tl.constexpr, CB: tl.constexpr, BP: tl.constexpr,
    SILU: tl.constexpr, DROP: tl.constexpr, OFFSET: tl.constexpr, SKIP: tl.constexpr,
    ONCE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of x, of scale and shift image by image, and of the offset.

    With SKIP, what x's other user found is added to x's.
    """
    image = tl.program_id(0)
    lane = tl.arange(0, CB)
    c = tl.program_id(1) * KB + lane
    real = (lane < KB) & (c < C)
    base = image.to(tl.int64) * P * C
    rows = tl.arange(0, BP)
    B = tl.num_programs(0)
    at = moments_at + image * C + c
    mean = tl.load(at, mask=real, other=0)
    centre = tl.load(at + B * C, mask=real, other=0)
    inverse = tl.load(at + 2 * B * C, mask=real, other=0)
    scale = tl.load(scale_at + image * scale_row + c, mask=real, other=0)
    shift = tl.load(shift_at + image * scale_row + c, mask=real, other=0)
    own = centre
    if OFFSET:
        own = centre - tl.load(offset_at + image * C + c, mask=real, other=0)
    factor = scale * inverse
    rest = shift - own * factor
    start, stride = 0, 0
    if DROP:
        start, stride = _sequence(seed_at, image)

    sums, products = tl.zeros([BP, CB], tl.float32), tl.zeros([BP, CB], tl.float32)
    if ONCE:
        inside = (rows < P)[:, None] & real[None, :]
        place = rows[:, None] * C + c[None, :]
        tile = tl.load(x_at + base + place, mask=inside, other=0)
        dy = tl.load(dy_at + base + place, mask=inside, other=0)
        normal, dz = _slopes(
            tile, dy, place, factor, rest, own, inverse, start, stride, kept, gain, SILU, DROP
        )
        sums, products = dz, tl.where(inside, dz * normal, 0.0)
    else:
        for first in range(0, P, BP):
            p = first + rows
            inside = (p < P)[:, None] & real[None, :]
            place = p[:, None] * C + c[None, :]
            tile = tl.load(x_at + base + place, mask=inside, other=0)
            dy = tl.load(dy_at + base + place, mask=inside, other=0)
            normal, dz = _slopes(
                tile, dy, place, factor, rest, own, inverse, start, stride, kept, gain, SILU, DROP
            )
            sums += dz
            products += tl.where(inside, dz * normal, 0.0)
    dshift, dscale = tl.sum(sums, 0), tl.sum(products, 0)
    tl.store(dshift_at + image * C + c, dshift, mask=real)
    tl.store(dscale_at + image * C + c, dscale, mask=real)

    together = (lane[:, None] // D == lane[None, :] // D) & real[None, :]
    count = D * P
    level = tl.sum(tl.where(together, (scale * dshift)[None, :], 0.0), 1) / count
    slope = tl.sum(tl.where(together, (scale * dscale)[None, :], 0.0), 1) / count
    if OFFSET:
        over = slope * ((mean - centre) * inverse)
        tl.store(
            doffset_at + image * C + c, inverse * (scale * dshift - P * (level + over)), mask=real
        )
    for first in range(0, P, BP):
        p = first + rows
        inside = (p < P)[:, None] & real[None, :]
        place = p[:, None] * C + c[None, :]
        if not ONCE:
            tile = tl.load(x_at + base + place, mask=inside, other=0)
            dy = tl.load(dy_at + base + place, mask=inside, other=0)
            normal, dz = _slopes(
                tile, dy, place, factor, rest, own, inverse, start, stride, kept, gain, SILU, DROP
            )
        dx = inverse[None, :] * (scale[None, :] * dz - level[None, :] - normal * slope[None, :])
        if SKIP:
            dx += tl.load(skip_at + base + place, mask=inside, other=0).to(tl.float32)
        tl.store(dx_at + base + place, dx.to(dx_at.dtype.element_ty), mask=inside)


@triton.jit
def join_forward(h_at, plus_at, bias_at, out_at, count, C, gain, BLOCK: tl.constexpr):
    """Write h + gain (plus + bias), element by element."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    h = tl.load(h_at + at, mask=inside, other=0).to(tl.float32)
    plus = tl.load(plus_at + at, mask=inside, other=0).to(tl.float32)
    bias = tl.load(bias_at + at % C, mask=inside, other=0)
    out = h + gain * (plus + bias)
    tl.store(out_at + at, out.to(out_at.dtype.element_ty), mask=inside)


@triton.jit
def join_backward(
    dout_at, dplus_at, sums_at, rows, C, gain, strip,
    CB: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write the gradient of plus, and of dout's `strip` rows of pixels the sum of every channel."""
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    begin = tl.program_id(0) * strip
    end = tl.minimum(begin + strip, rows)
    sums = tl.zeros([BP, CB], tl.float32)
    for first in range(begin, end, BP):
        p = first + tl.arange(0, BP)
        inside = (p < end)[:, None] & (c < C)[None, :]
        place = p[:, None].to(tl.int64) * C + c[None, :]
        dout = tl.load(dout_at + place, mask=inside, other=0).to(tl.float32)
        sums += dout
        tl.store(dplus_at + place, (dout * gain).to(dplus_at.dtype.element_ty), mask=inside)
    tl.store(sums_at + tl.program_id(0) * C + c, tl.sum(sums, 0), mask=c < C)
