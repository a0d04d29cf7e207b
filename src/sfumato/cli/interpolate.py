"""`sfumato interpolate RUN A B [C D]`: the way between images, or seeds, in latent space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sfumato.cli.latent_options import LatentOptions, open_flow
from sfumato.cli.parse import check_seeds, parse
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.recipes.latents import Flow

_SEED = "seed:"


@dataclass(frozen=True)
class InterpolateOptions:
    """Options of `sfumato interpolate`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (its newest checkpoint), or one checkpoint folder."""
    ends: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="A B [C D]")]
    """Image files or seed:NUMBER (the picture that sample draws): two ends, or four corners."""
    steps_between: int = 9
    """Images between two ends."""
    fixed_point: bool = False
    """Invert images exactly, by iteration, so that the ends come back to 1e-4 or better."""
    level: tuple[float, ...] = ()
    """Mix the images, diffused to this sigma, in place of their latents (DDPM Figure 8); several
    levels make a row each."""
    seed: int = 0
    """Seed of the noise that is shared (with --level)."""
    common: Annotated[LatentOptions, tyro.conf.arg(name="")] = field(default_factory=LatentOptions)
    """Model."""


def run(arguments: Sequence[str]) -> int:
    """Interpolate, and say where the pictures are."""
    options = parse(
        InterpolateOptions,
        arguments,
        "interpolate",
        "Images on the way between two (a strip and an animation) or four (a grid), along arcs "
        "in latent space.",
    )
    if len(options.ends) not in (2, 4):
        raise ConfigError(f"give two ends or four corners, not {len(options.ends)}")
    if options.steps_between < 0:
        raise ConfigError(f"--steps-between must be 0 or more, not {options.steps_between}")
    if options.level and len(options.ends) != 2:
        raise ConfigError("--level mixes two images: give two ends")
    check_seeds(options.seed)
    inverts = not options.level and any(_seed_of(end) is None for end in options.ends)
    flow, note = open_flow(
        options.run, options.common, any_solver=bool(options.level), fine=inverts
    )
    if note:
        print(note)
    print(f"by {flow.sampler.solver}, {len(flow.down) - 1} steps")
    folder = options.common.folder(flow, "interpolations")
    columns = options.steps_between + 2
    if options.level:
        images, about = _mixed(options, flow, columns)
    else:
        images, about = _arcs(options, flow, columns)
    from sfumato.recipes.latent_files import write_strip

    about = {"ends": list(options.ends), "columns": columns, **about}
    for what, path in write_strip(folder, flow, images, columns, about).items():
        print(f"{what}: {path}")
    print(f"images: {folder}")
    return 0


def _arcs(options: InterpolateOptions, flow: Flow, columns: int) -> tuple[Tensor, dict[str, Any]]:
    """Images decoded from points of the arcs between the ends' latents."""
    from sfumato.latents import interpolate, interpolate_corners, rmse

    flow.check_invertible()
    latents = [_latent(end, options, flow) for end in options.ends]
    if len(latents) == 2:
        points = interpolate(latents[0], latents[1], columns)
        corners = [0, columns - 1]
    else:
        first, second, third, fourth = latents
        points = interpolate_corners((first, second, third, fourth), columns, columns).flatten(0, 1)
        corners = [0, columns - 1, columns * (columns - 1), columns**2 - 1]
    images = flow.decode(points)
    about: dict[str, Any] = {"fixed_point": options.fixed_point}
    for end, corner in zip(options.ends, corners, strict=True):
        if _seed_of(end) is None:
            error = float(rmse(images[corner][None], _image(end, options, flow)[None]))
            print(f"{end} comes back with RMSE {error:.3e} on [-1, 1], the step to 0 included")
    return images, about


def _mixed(options: InterpolateOptions, flow: Flow, columns: int) -> tuple[Tensor, dict[str, Any]]:
    """Images mixed at noise levels, a row a level."""
    import torch

    from sfumato.recipes.latent_figures import levels_from, mixed

    weights = [i / (columns - 1) for i in range(columns)]
    walked = [float(levels_from(flow, sigma)[0]) for sigma in options.level]
    a, b = (_image(end, options, flow) for end in options.ends)
    rows = [mixed(flow, a, b, sigma, weights, options.seed) for sigma in options.level]
    print("mixed at sigma " + ", ".join(f"{sigma:.4g}" for sigma in walked))
    return torch.cat(rows), {"levels": walked, "seed": options.seed}


def _latent(end: str, options: InterpolateOptions, flow: Flow) -> Tensor:
    seed = _seed_of(end)
    if seed is not None:
        return flow.seeded([seed])[0]
    return flow.invert(_image(end, options, flow)[None], exactly=options.fixed_point)[0]


def _image(end: str, options: InterpolateOptions, flow: Flow) -> Tensor:
    """The image [C, H, W] in [-1, 1] of a file, or the one a seed draws."""
    seed = _seed_of(end)
    if seed is not None:
        drawn = flow.model.drawn([seed], label=options.common.class_, sampler=flow.sampler)
        return next(drawn)[0]
    from sfumato.recipes.inputs import Opening, read_inputs

    opening = Opening(options.common.size, options.common.channels)
    inputs = read_inputs([end], flow.model.format, opening, 1)
    if inputs.total > 1:
        raise ConfigError(f"{end} holds {inputs.total} images: name one image file")
    return inputs.x[0]


def _seed_of(end: str) -> int | None:
    """The number of seed:NUMBER; None for a file."""
    if not end.startswith(_SEED):
        return None
    number = end[len(_SEED) :]
    if not number.isdecimal():
        raise ConfigError(f"expected seed:NUMBER, as seed:3, or an image file, got {end!r}")
    check_seeds(int(number), name=_SEED)
    return int(number)
