"""`sfumato invert RUN IMAGES...`: images to their latents and back, with the error of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.cli.latent_options import LatentOptions, open_flow
from sfumato.cli.parse import parse
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.recipes.inputs import Inputs
    from sfumato.recipes.latents import Flow

_TABLE_STEPS = (10, 20, 50, 100, 200, 500, 1000)
_TABLE_IMAGES = 32
_CLOSE = 1e-4


@dataclass(frozen=True)
class InvertOptions:
    """Options of `sfumato invert`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (its newest checkpoint), or one checkpoint folder."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGES...")]
    """Image files, folders, zips or arrays, in the format of the run's own images."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """The first so many images; all if not given, of a table 32."""
    fixed_point: bool = False
    """Invert each step exactly, by iteration: slower, and comes back to 1e-4 or better."""
    table: bool = False
    """The round trip's error against the number of steps (DDIM Table 2)."""
    table_steps: tuple[int, ...] = _TABLE_STEPS
    """Numbers of steps of the table."""
    common: Annotated[LatentOptions, tyro.conf.arg(name="")] = field(default_factory=LatentOptions)
    """Model."""


def run(arguments: Sequence[str]) -> int:
    """Invert, print the errors, and say where the files are."""
    options = parse(
        InvertOptions,
        arguments,
        "invert",
        "Walk images up to their latents by the probability flow and back again, and print how "
        "far from where they started they come back.",
    )
    if not options.images:
        raise ConfigError("give the images to invert: sfumato invert RUN FOLDER")
    if options.n is not None and options.n < 1:
        raise ConfigError(f"-n must be at least 1, not {options.n}: there is nothing to invert")
    own = options.common.sampler
    if options.table and (own.steps or own.nfe):
        raise ConfigError("a table has steps of its own: give them by --table-steps")
    flow, note = open_flow(options.run, options.common, fine=True)
    if note:
        print(note)
    flow.check_invertible()
    from sfumato.recipes.inputs import Opening, read_inputs

    opening = Opening(options.common.size, options.common.channels)
    limit = options.n or (_TABLE_IMAGES if options.table else None)
    inputs = read_inputs(options.images, flow.model.format, opening, limit)
    if inputs.total > len(inputs.names):
        print(f"the first {len(inputs.names)} of {inputs.total} images")
    return _table(options, flow, inputs) if options.table else _invert(options, flow, inputs)


def _invert(options: InvertOptions, flow: Flow, inputs: Inputs) -> int:
    from sfumato.recipes.latent_files import write_inversion
    from sfumato.recipes.latents import mean_square

    folder = options.common.folder(flow, "latents")
    how = _how(options, flow)
    up = flow.up
    print(f"inverting {len(inputs.names)} images by {how}: sigma {up[0]:.4g} to {up[-1]:.4g}")
    trip = flow.round_trip(inputs.x, exactly=options.fixed_point)
    print("round trip: RMSE on [-1, 1] and MSE on [0, 1] per dimension; then with the step to 0")
    for name, error, image in zip(
        inputs.names, trip.error.tolist(), trip.image_error.tolist(), strict=True
    ):
        print(f"{_line(error**2)}   with step to 0: {_line(image**2)}   {name}")
    if len(inputs.names) > 1:
        means = mean_square(trip.error), mean_square(trip.image_error)
        print(f"{_line(means[0])}   with step to 0: {_line(means[1])}   all images")
    far = int((trip.error > _CLOSE).sum())
    if options.fixed_point and far:
        print(
            f"note: {far} of them did not come back to {_CLOSE:g}: where steps are too coarse to "
            "have an inverse; take more --steps"
        )
    for what, path in write_inversion(folder, flow, inputs.x, inputs.names, trip, how).items():
        print(f"{what}: {path}")
    return 0


def _table(options: InvertOptions, flow: Flow, inputs: Inputs) -> int:
    from sfumato.recipes.latent_files import write_table
    from sfumato.recipes.latents import TableRow, table

    ladder = flow.limits.levels
    possible = [n for n in options.table_steps if ladder is None or n <= len(ladder)]
    if len(possible) < len(options.table_steps):
        assert ladder is not None
        print(f"left out: more steps than the {len(ladder)} levels of this model's ladder")
    if not possible:
        raise ConfigError("a table needs --table-steps with at least one number of steps")
    path = options.common.folder(flow, "round-trip") / "round-trip.json"
    how = _how(options, None)
    sampler = flow.sampler.solver
    print(f"round trip of {len(inputs.names)} images by {sampler}, {how}, per dimension:")
    print(f"{'steps':>6}  {'MSE [0, 1]':>11}  {'RMSE [-1, 1]':>12}  {'MSE with step to 0':>18}")
    rows: list[TableRow] = []
    for row in table(flow, inputs.x, possible, exactly=options.fixed_point):
        print(f"{row.steps:>6}  {row.mse:>11.3g}  {row.rmse:>12.3g}  {row.image_mse:>18.3g}")
        rows.append(row)
    write_table(path, flow, inputs.names, rows, how)
    print(f"table: {path}")
    return 0


def _how(options: InvertOptions, flow: Flow | None) -> str:
    way = "fixed-point inversion" if options.fixed_point else "explicit steps"
    return way if flow is None else f"{flow.sampler.solver}, {len(flow.up)} levels, {way}"


def _line(square: float) -> str:
    return f"RMSE {square**0.5:.3e}  MSE {square / 4:.3e}"
