"""Triton's kernels for a GPU: group norm with all that precedes and follows it.

Images lie channels last: pixel p and channel c of image b at (b P + p) C + c. To be imported only
where Triton is. A program of the norm has KB channels of one image, whole groups of D of them, and
its neighbours the next ones: together they read whole lines of memory.
"""

import os

import triton
import triton.language as tl

if os.environ.get("TRITON_INTERPRET") == "1":

    @triton.jit
    def _sigmoid(x):
        return 1 / (1 + tl.exp(-x))

else:

    @triton.jit
    def _sigmoid(x):
        """1 / (1 + exp(-x)) to a few units of the last place, without care for denormal numbers."""
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 t;
            mul.f32 t, $1, 0fBFB8AA3B;
            ex2.approx.ftz.f32 t, t;
            add.f32 t, t, 0f3F800000;
            rcp.approx.ftz.f32 $0, t;
            }""",
            "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip


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
def _kept(p, start, stride, kept, KB: tl.constexpr, CB: tl.constexpr):
    """Which of a program's pixels p and channels are kept: `kept` in 65536 are.

    Two channels share a hash, which the compiler sees.
    """
    lane = tl.arange(0, CB)
    pair = (p * tl.num_programs(0) + tl.program_id(0)) * ((KB + 1) // 2)
    hashed = _mixed((pair[:, None] + (lane >> 1)[None, :]).to(tl.uint32) * stride + start)
    drawn = (hashed >> ((lane & 1) << 4).to(tl.uint32)[None, :]) & 0xFFFF
    return drawn.to(tl.int32) < kept


@triton.jit
def _program(P, C, KB: tl.constexpr, CB: tl.constexpr):
    """A program's image, its lanes, their channels, which are real ones, and where its image is."""
    image = tl.program_id(1)
    lane = tl.arange(0, CB)
    c = tl.program_id(0) * KB + lane
    return image, lane, c, (lane < KB) & (c < C), image.to(tl.int64) * P * C


@triton.jit
def _block(at, p, c, real, P, C):
    """What an image has at pixels p and channels c, where they are real ones; else 0."""
    inside = (p < P)[:, None] & real[None, :]
    return tl.load(at + p[:, None] * C + c[None, :], mask=inside, other=0)


@triton.jit
def _apart(tile, pivot, p, P):
    """By how much a block's pixels differ from those of the pivot."""
    return tl.where((p < P)[:, None], tile.to(tl.float32) - pivot[None, :], 0.0)


@triton.jit
def norm_forward(
    x_at, offset_at, scale_at, shift_at, seed_at, y_at, moments_at,
    P, C, scale_row, kept, gain, eps,
    D: tl.constexpr, KB: tl.constexpr, CB: tl.constexpr, BP: tl.constexpr,
    SILU: tl.constexpr, DROP: tl.constexpr, OFFSET: tl.constexpr, ONCE: tl.constexpr,
):  # fmt: skip
    """Write y = dropout(act(norm(x + offset) scale + shift)), and moments [3, B, C].

    These are every channel's mean, its group's, and 1 / its group's deviation.
    """
    image, lane, c, real, base = _program(P, C, KB, CB)
    rows = tl.arange(0, BP)

    # Sums of differences from the first pixels' mean, which lose no digits where the mean is large.
    tile = _block(x_at + base, rows, c, real, P, C)
    pivot = tl.sum(tile.to(tl.float32), 0) / tl.minimum(P, BP)
    sums, squares = tl.zeros([BP, CB], tl.float32), tl.zeros([BP, CB], tl.float32)
    if ONCE:
        sums = _apart(tile, pivot, rows, P)
        squares = sums * sums
    else:
        for first in range(0, P, BP):
            apart = _apart(_block(x_at + base, first + rows, c, real, P, C), pivot, first + rows, P)
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

    B = tl.num_programs(1)
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
        if not ONCE:
            tile = _block(x_at + base, p, c, real, P, C)
        y = tile.to(tl.float32) * factor[None, :] + rest[None, :]
        if SILU:
            y = y * _sigmoid(y)
        if DROP:
            y = tl.where(_kept(p, start, stride, kept, KB, CB), y * gain, 0.0)
        to = y_at + base + p[:, None] * C + c[None, :]
        tl.store(to, y.to(y_at.dtype.element_ty), mask=(p < P)[:, None] & real[None, :])


@triton.jit
def _slopes(
    tile, dy, p, factor, rest, start, stride, kept,
    SILU: tl.constexpr, DROP: tl.constexpr, KB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """The gradient of what scale and shift make of x, less dropout's gain."""
    dz = dy.to(tl.float32)
    if DROP:
        dz = tl.where(_kept(p, start, stride, kept, KB, CB), dz, 0.0)
    if SILU:
        z = tile.to(tl.float32) * factor[None, :] + rest[None, :]
        s = _sigmoid(z)
        dz = dz * (s + z * (s - s * s))
    return dz


@triton.jit
def norm_backward(
    x_at, offset_at, scale_at, shift_at, seed_at, moments_at, dy_at, skip_at,
    dx_at, dscale_at, dshift_at, doffset_at,
    P, C, scale_row, kept, gain,
    D: tl.constexpr, KB: tl.constexpr, CB: tl.constexpr, BP: tl.constexpr,
    SILU: tl.constexpr, DROP: tl.constexpr, OFFSET: tl.constexpr, SKIP: tl.constexpr,
    ONCE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of x, of scale and shift image by image, and of the offset.

    With SKIP, what x's other user found is added to x's.
    """
    image, lane, c, real, base = _program(P, C, KB, CB)
    rows = tl.arange(0, BP)
    B = tl.num_programs(1)
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

    # Of x as it was normalised: x inverse + below.
    below = -own * inverse
    sums, products = tl.zeros([BP, CB], tl.float32), tl.zeros([BP, CB], tl.float32)
    if ONCE:
        tile = _block(x_at + base, rows, c, real, P, C)
        dy = _block(dy_at + base, rows, c, real, P, C)
        dz = _slopes(tile, dy, rows, factor, rest, start, stride, kept, SILU, DROP, KB, CB)
        sums = dz
        products = dz * (tile.to(tl.float32) * inverse[None, :] + below[None, :])
    else:
        for first in range(0, P, BP):
            p = first + rows
            tile = _block(x_at + base, p, c, real, P, C)
            dy = _block(dy_at + base, p, c, real, P, C)
            dz = _slopes(tile, dy, p, factor, rest, start, stride, kept, SILU, DROP, KB, CB)
            sums += dz
            products += dz * (tile.to(tl.float32) * inverse[None, :] + below[None, :])
    dshift, dscale = tl.sum(sums, 0) * gain, tl.sum(products, 0) * gain
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
    # inverse (scale dz - level - slope (x inverse + below))
    of_dz, of_x = factor * gain, -inverse * inverse * slope
    always = -inverse * (level + slope * below)
    for first in range(0, P, BP):
        p = first + rows
        if not ONCE:
            tile = _block(x_at + base, p, c, real, P, C)
            dy = _block(dy_at + base, p, c, real, P, C)
            dz = _slopes(tile, dy, p, factor, rest, start, stride, kept, SILU, DROP, KB, CB)
        dx = dz * of_dz[None, :] + (tile.to(tl.float32) * of_x[None, :] + always[None, :])
        if SKIP:
            dx += _block(skip_at + base, p, c, real, P, C).to(tl.float32)
        to = dx_at + base + p[:, None] * C + c[None, :]
        tl.store(to, dx.to(dx_at.dtype.element_ty), mask=(p < P)[:, None] & real[None, :])
