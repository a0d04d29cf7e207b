"""Triton's kernels for a GPU: a residual block's end, and resampling.

Images lie channels last: pixel p and channel c of image b at (b P + p) C + c. To be imported only
where Triton is.
"""

import triton
import triton.language as tl


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


@triton.jit
def _quads(count, W, C, CB: tl.constexpr, BP: tl.constexpr):
    """Where pixels of the smaller image are, and the first of each one's four in the larger."""
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * CB + tl.arange(0, CB)
    first = 4 * (p // W) * W + 2 * (p % W)
    inside = (p < count)[:, None] & (c < C)[None, :]
    return p[:, None] * C + c[None, :], first[:, None] * C + c[None, :], inside


@triton.jit
def doubled(x_at, y_at, count, W, C, gain, CB: tl.constexpr, BP: tl.constexpr):
    """Write each of `count` pixels of x, W of them a row, times gain as 2 x 2 pixels of y."""
    at, to, inside = _quads(count, W, C, CB, BP)
    value = tl.load(x_at + at, mask=inside, other=0).to(tl.float32) * gain
    value = value.to(y_at.dtype.element_ty)
    for row in tl.static_range(2):
        for column in tl.static_range(2):
            tl.store(y_at + to + (2 * row * W + column) * C, value, mask=inside)


@triton.jit
def halved(x_at, y_at, count, W, C, gain, CB: tl.constexpr, BP: tl.constexpr):
    """Write gain times the sums of 2 x 2 pixels of x as `count` pixels of y, W of them a row."""
    to, at, inside = _quads(count, W, C, CB, BP)
    sums = tl.zeros([BP, CB], tl.float32)
    for row in tl.static_range(2):
        for column in tl.static_range(2):
            part = tl.load(x_at + at + (2 * row * W + column) * C, mask=inside, other=0)
            sums += part.to(tl.float32)
    tl.store(y_at + to, (sums * gain).to(y_at.dtype.element_ty), mask=inside)
