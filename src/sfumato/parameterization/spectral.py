"""The best linear estimate of x0 in the place of c_skip x: EDM's skip, frequency by frequency.

EDM's c_skip is the best linear denoiser of data whose values are independent (Karras et al. 2022,
appendix B.6). Images are not: nearly all of their variance lies in low frequencies, which can be
read where high ones drown. In a cosine basis and the principal axes of their channels images are
nearly uncorrelated, so with variances v the estimate is Wiener's filter,
m + v / (v + sigma^2) (x - m). At high sigma it is near to all that can be known (Wang & Vastola
2024, "The unreasonable effectiveness of Gaussian score approximation"): a network that starts from
it has only the rest to learn. Of pairs it is the estimate given x and the image y that x0 starts
from: m is then y's own linear estimate, and v what that leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.diffusion import expand
from sfumato.noise import F64

_FLOOR = 0.01
"""Least standard deviation of a frequency, as a share of that of pixels."""


class Spectral(nn.Module):
    """Data of known mean and variances in the cosine basis, for images [C, H, W].

    Nothing is trained. `mean` [C, H, W] and `var` [C, H, W] are of cosine coefficients along the
    axes `mix` [C, C] of the channels, one a column. With `given` channels K of images that x0
    starts from, the mean moves by `gain` [C, K, H, W] times their offsets from `given_mean`
    [K, H, W]. A new one, to be filled by `measure` or from a checkpoint, takes pixels to be
    independent, of mean 0 and deviation 0.5, as EDM's c_skip does.
    """

    mean: Tensor
    var: Tensor
    mix: Tensor
    gain: Tensor
    given_mean: Tensor

    def __init__(self, channels: int, height: int, width: int, given: int = 0) -> None:
        super().__init__()
        shape, self.given = (channels, height, width), given
        if given:
            self.register_buffer("gain", torch.zeros(channels, given, height, width))
            self.register_buffer("given_mean", torch.zeros(given, height, width))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.full(shape, 0.25))
        self.register_buffer("mix", torch.eye(channels))

    @property
    def shown(self) -> bool:
        """Whether the network is to see the estimate, not x: where there is an image to start from.

        At high sigma x is noise, of which such a network would have to rid itself.
        """
        return self.given > 0

    def forward(
        self, x: Tensor, sigma: Tensor, c_skip: Tensor, image: Tensor | None = None
    ) -> Tensor:
        """Return the estimate of x0 less c_skip x, for x [B, C, H, W] and sigma [] or [B].

        c_skip [] or [B] is any factor; near that of the estimate rounding errors are smallest.
        `image` [B, K, H, W] is what x0 starts from, if anything.
        """
        mean, var, mix = (t.to(x) for t in (self.mean, self.var, self.mix))
        if self.given and image is not None:
            apart = _frequencies(image.to(x)) - self.given_mean.to(x)
            mean = mean + (self.gain.to(x) * apart[:, None]).sum(2)
        keep = expand(c_skip, x)
        offset = _mixed(_frequencies(x), mix.T) - mean
        rest = offset * (var / (var + expand(sigma.square(), x)) - keep) + (1 - keep) * mean
        return _images(_mixed(rest, mix))

    def covariance(self, v: Tensor, sigma: Tensor) -> Tensor:
        """Return the covariance of x0 given x times v [B, C, H, W]; sigma [] or [B]."""
        var, mix = self.var.to(v), self.mix.to(v)
        square = expand(sigma.square(), v)
        kept = _mixed(_frequencies(v), mix.T) * (var * square / (var + square))
        return _images(_mixed(kept, mix))

    def resized(self, height: int, width: int) -> Spectral:
        """Return what it says of images of another size and the same detail.

        Variances are read between its frequencies, and below its lowest are that one's; their mean,
        the variance of a pixel, stays. The mean is that of all pixels.
        """
        channels, rows, columns = self.var.shape
        if (height, width) == (rows, columns):
            return self
        other = Spectral(channels, height, width).to(self.var)
        other.mix.copy_(self.mix)
        other.mean[:, 0, 0] = self.mean[:, 0, 0] * math.sqrt(height * width / (rows * columns))
        down = torch.arange(height, device=self.var.device) * (rows / height)
        along = torch.arange(width, device=self.var.device) * (columns / width)
        at = torch.stack(torch.meshgrid(along, down, indexing="xy"), -1).to(self.var)
        limit = at.new_tensor([max(columns - 1, 1), max(rows - 1, 1)])
        found = F.grid_sample(
            self.var.log()[None], 2 * (at / limit)[None] - 1, padding_mode="border",
            align_corners=True,
        )  # fmt: skip
        var = found[0].exp()
        other.var.copy_(var * (self.var.mean() / var.mean()))
        return other

    def measure(self, batches: Iterable[Tensor], *, flip: bool = False) -> None:
        """Take mean and variances from images [B, C + K, H, W]; `flip`: mirrored left-right, too.

        The last K channels are of what an image starts from. Raises ValueError where there are no
        images, or no value differs from another.
        """
        channels, height, width = self.var.shape
        both = channels + self.given
        count, total = 0, torch.zeros(both, height, width, dtype=F64)
        products = torch.zeros(height, width, both, both, dtype=F64)
        for batch in batches:
            c = _frequencies(batch.to("cpu", F64))
            count, total = count + len(c), total + c.sum(0)
            products += torch.einsum("bchw,bdhw->hwcd", c, c)
        if not count:
            raise ValueError("a spectrum cannot be measured: there are no images")
        mean = total / count
        middle = float(mean[:channels, 0, 0].mean()) / math.sqrt(height * width)
        squares = products.diagonal(dim1=-2, dim2=-1)[..., :channels] / count
        pixels = float(squares.mean()) - middle**2  # the variance of a pixel
        if not pixels > 1e-12 * middle**2:  # what rounding leaves
            raise ValueError("a spectrum cannot be measured: all values of the images are equal")
        if flip:  # Mirroring changes the sign of every other column.
            mean[:, :, 1::2] = 0
        scatter = products / count - torch.einsum("chw,dhw->hwcd", mean, mean)
        scatter, gain = _told_apart(scatter, channels)
        _, mix = torch.linalg.eigh(scatter.sum((0, 1)))
        var = torch.einsum("hwcd,ck,dk->khw", scatter, mix, mix)
        self.mix.copy_(mix)
        self.mean.copy_(torch.einsum("chw,ck->khw", mean[:channels], mix))
        if self.given:
            self.gain.copy_(torch.einsum("hwgc,ck->kghw", gain, mix))
            self.given_mean.copy_(mean[channels:])
        self.var.copy_(var.clamp(min=_FLOOR**2 * pixels))


def _told_apart(scatter: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Covariances [H, W, C, C] given what is started from; the regression on it [H, W, K, C]."""
    own, cross = scatter[..., :channels, :channels], scatter[..., channels:, :channels]
    given = scatter[..., channels:, channels:]
    ridge = _FLOOR**2 * given.diagonal(dim1=-2, dim2=-1).mean() if cross.numel() else 0.0
    gain = torch.linalg.solve(given + ridge * torch.eye(len(given[0, 0]), dtype=F64), cross)
    return own - cross.mT @ gain, gain


@lru_cache(maxsize=32)
def cosines(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthonormal cosine basis [n, n] (DCT-II), a row a frequency."""
    k, i = torch.arange(n, dtype=F64)[:, None], torch.arange(n, dtype=F64)
    basis = (math.pi * k * (2 * i + 1) / (2 * n)).cos() * math.sqrt(2 / n)
    basis[0] *= math.sqrt(0.5)
    return basis.to(device=device, dtype=dtype)


def _frequencies(x: Tensor) -> Tensor:
    """Cosine coefficients of images [*, H, W]."""
    rows, columns = (cosines(n, x.dtype, x.device) for n in x.shape[-2:])
    return rows @ x @ columns.T


def _images(c: Tensor) -> Tensor:
    """Images [*, H, W] of cosine coefficients."""
    rows, columns = (cosines(n, c.dtype, c.device) for n in c.shape[-2:])
    return rows.T @ c @ columns


def _mixed(c: Tensor, by: Tensor) -> Tensor:
    """Channels of [B, C, H, W] mixed by [C, C]."""
    if len(by) == 1:
        return c * by
    return (by @ c.flatten(2)).unflatten(2, c.shape[2:])
