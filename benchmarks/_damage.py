"""Damage for the restoration benchmark, and answers to it: by models, and by what needs none.

Training pairs and the table's test images get their clouds here, so that they are of one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.clouds import CloudField, Clouds
from sfumato.data.images import Images
from sfumato.data.pixels import from_model, to_model
from sfumato.gaussian import Gaussian
from sfumato.parameterization import Spectral
from sfumato.protocols import Denoiser, Solver
from sfumato.randomness import Noise
from sfumato.recipes.model import Model
from sfumato.recipes.restoring import How, usual_sampler
from sfumato.recipes.restoring.names import MethodName
from sfumato.restoration import CovarianceMatching, Mask, Measured
from sfumato.sampling import sample, start_from_prior

COVERS = (0.1, 0.6)
"""Least and most of an image under cloud in training pairs; the table's covers lie within."""
APART = 100_000
"""Between the seeds of one answer and those of the next."""
TRAINING_SEED = 10_000_000
"""Training clouds are drawn from here on; the table's image i is clouded by seed i."""


@dataclass(frozen=True, eq=False)
class Damage:
    """Images [n, C, H, W] in [-1, 1], where they are known, and what a camera would see.

    thin: the share of unknown pixels through which some ground is seen.
    """

    name: str
    x0: Tensor
    known: Tensor
    seen: Tensor
    thin: float = 0.0


def drawn(shape: tuple[int, int], seed: int, cover: float, softness: float) -> CloudField:
    """One image's clouds; no shadows, which a mask of lost pixels cannot say."""
    return Clouds(cover=cover, shadow=0.0, softness=softness).of(shape, seed)


def clouded(x0: Tensor, cover: float, softness: float) -> Damage:
    size = (x0.shape[2], x0.shape[3])
    fields = [drawn(size, seed, cover, softness) for seed in range(len(x0))]
    known = torch.stack([~field.mask() for field in fields])[:, None]
    seen = torch.stack([Clouds.over(x, field) for x, field in zip(x0, fields, strict=True)])
    opacity = torch.stack([field.opacity for field in fields])[:, None][~known]
    thin = float((opacity < 1).double().mean())
    return Damage(f"clouds, {cover:.0%}", x0, known, as_bytes(seen), thin)


def scattered(x0: Tensor, lost: float) -> Damage:
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(len(x0), 1, *x0.shape[2:], generator=generator) >= lost
    return Damage(f"pixels at random, {lost:.0%}", x0, known, x0 * known)


def as_bytes(x: Tensor) -> Tensor:
    """Rounded to 8 bits, as images of pairs are."""
    return ((x + 1) * 127.5).round() / 127.5 - 1


def training_pairs(
    images: Images, draws: int, softness: float, seed: int = 0
) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]]:
    """Yield raw images [C, H, W], clouded and clear, and what is clouded [H, W].

    Every image comes once, `draws` times. Covers are uniform over `COVERS`.
    """
    form = images.format
    covers = np.random.default_rng([seed, 1])
    number = TRAINING_SEED + seed
    for _ in range(draws):
        for i in range(len(images)):
            raw = images.read([i])[0]
            field = drawn((form.height, form.width), number, covers.uniform(*COVERS), softness)
            seen = from_model(Clouds.over(to_model(raw, form), field), form)
            yield seen, raw, field.mask().numpy()
            number += 1


def in_place(damage: Damage, x: Tensor, first: int = 0) -> Tensor:
    """Answers with the known pixels as they are."""
    rows = slice(first, first + len(x))
    return torch.where(damage.known[rows], damage.x0[rows], x.cpu().clamp(-1, 1))


def restored(model: Model, damage: Damage, how: How, answer: int, steps: int, batch: int) -> Tensor:
    """One answer of an unconditional model for each image; it is told the known pixels.

    Answers 0 and 1, 2 and 3, ... are antithetic, as those of `sfumato restore -n` are.
    """
    known_of = model.network.spectrum
    covariance = known_of.covariance if isinstance(known_of, Spectral) else None

    def bent(rows: slice, noise: Noise, solver: Solver[Any]) -> tuple[Denoiser, Solver[Any]]:
        x0, known = (part[rows].to(model.device) for part in (damage.x0, damage.known))
        measured = Measured(Mask(known), x0 * known)
        return how.bend(model.denoiser, solver, measured, noise, covariance)

    return _walked(model, damage, how.method_for(model), answer, steps, batch, bent)


def _walked(
    model: Model, damage: Damage, method: MethodName | None, answer: int, steps: int, batch: int,
    asked: Callable[[slice, Noise, Solver[Any]], tuple[Denoiser, Solver[Any]]],
) -> Tensor:  # fmt: skip
    """Answers by restoration's usual sampler; `asked` says what is sampled of some images."""
    sampler = replace(usual_sampler(model.recipe.sampler, method), steps=steps)
    grid, solver = model.grid(sampler), model.solver(sampler)
    start = APART * (answer - answer % 2) + answer % 2
    parts: list[Tensor] = []
    for first in range(0, len(damage.x0), batch):
        rows = slice(first, min(first + batch, len(damage.x0)))
        seeds = tuple(start + 2 * i for i in range(rows.start, rows.stop))
        noise = Noise(seeds, antithetic=True)
        denoise, walk = asked(rows, noise, solver)
        x = start_from_prior(denoise, grid[0], model.format.shape, noise, device=model.device)
        for step in sample(denoise, walk, grid, x, noise):
            x = step.x
        parts.append(in_place(damage, x, first))
    return torch.cat(parts)


def linear(spectrum: Spectral, damage: Damage) -> Tensor:
    """The best linear guess from what is known, by the data's frequencies alone: no network."""
    high, mask = torch.tensor(1e4, dtype=torch.float64), Mask(damage.known)
    nothing = torch.zeros_like(damage.x0)
    mean = spectrum(nothing, high, torch.zeros(()))
    step = CovarianceMatching(spectrum.covariance, rounds=1000, tolerance=1e-5)
    measured = Measured(mask, damage.x0 * damage.known)
    found = step(lambda x, sigma: Gaussian(mean, torch.zeros(())), measured, nothing, high)
    return in_place(damage, found)


def answered(model: Model, damage: Damage, answer: int, steps: int, batch: int) -> Tensor:
    """One answer of a model trained on pairs; it is given what a camera would see."""
    starts = given(model, damage)

    def bound(rows: slice, noise: Noise, solver: Solver[Any]) -> tuple[Denoiser, Solver[Any]]:
        return model.bound(noise.seeds, images=starts[rows]), solver

    with torch.no_grad():
        return _walked(model, damage, None, answer, steps, batch, bound)


def told_mask(model: Model) -> bool:
    """Whether a model of pairs is given the mask as a last channel."""
    assert model.condition is not None
    return model.condition.channels == model.format.channels + 1


def given(model: Model, damage: Damage) -> Tensor:
    """What a model of pairs starts from: the image, and the mask where it was trained with one."""
    if not told_mask(model):
        return damage.seen
    return torch.cat([damage.seen, 1 - 2 * damage.known.to(damage.seen)], 1)


def posterior_mean(model: Model, damage: Damage, batch: int, *, mirror: bool = False) -> Tensor:
    """What a model trained on pairs predicts from noise alone: the mean of its answers, at once.

    `mirror` averages it with what is predicted for the mirror image.
    """
    high, starts = model.grid()[0], given(model, damage)
    sampler = replace(model.recipe.sampler, mirror=mirror)
    parts: list[Tensor] = []
    for first in range(0, len(damage.x0), batch):
        seen = starts[first : first + batch]
        seeds = range(first, first + len(seen))
        denoise = model.bound(seeds, sampler=sampler, images=seen)
        x = start_from_prior(
            denoise, high, model.format.shape, Noise(tuple(seeds)), device=model.device
        )
        with torch.no_grad():
            parts.append(in_place(damage, denoise(x, high).mean, first))
    return torch.cat(parts)


def classical() -> dict[str, Callable[[Damage], Tensor]]:
    """What fills in without a model; exits with what to install where a package is missing."""
    try:
        import cv2
        from skimage.restoration import inpaint_biharmonic
    except ImportError as error:
        raise SystemExit(
            f"the table compares with scikit-image's and OpenCV's inpainting, and {error.name} is "
            "missing: pip install scikit-image opencv-python-headless"
        ) from None

    def biharmonic(image: NDArray[Any], lost: NDArray[np.bool_]) -> NDArray[Any]:
        found = inpaint_biharmonic(image.astype(np.float64) / 255, lost, channel_axis=-1)
        return np.asarray(found) * 255

    def opencv(flag: int) -> Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[Any]]:
        def fill(image: NDArray[Any], lost: NDArray[np.bool_]) -> NDArray[Any]:
            found = cv2.inpaint(np.ascontiguousarray(image), lost.astype(np.uint8), 3, flag)
            return found.reshape(image.shape)

        return fill

    fills = {
        "biharmonic": biharmonic,
        "Telea": opencv(cv2.INPAINT_TELEA),
        "Navier-Stokes": opencv(cv2.INPAINT_NS),
    }
    return {name: _each(fill) for name, fill in fills.items()}


def _each(fill: Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[Any]]) -> Any:
    """Fill of 8-bit images [H, W, C] in which what is lost is black -> of `Damage`."""

    def all_of(damage: Damage) -> Tensor:
        found: list[Tensor] = []
        for x, known in zip(damage.x0 * damage.known, damage.known, strict=True):
            image = ((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            filled = np.asarray(fill(image, ~known[0].numpy()), np.float32)
            found.append(torch.from_numpy(filled / 127.5 - 1).permute(2, 0, 1))
        return in_place(damage, torch.stack(found))

    return all_of
