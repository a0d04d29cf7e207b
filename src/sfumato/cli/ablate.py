"""`sfumato ablate edm`: a paper's ablation, trained, sampled and measured by one command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.cli.parse import parse
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.recipes.ablation import Cell
    from sfumato.recipes.run_config import Bookkeeping, DataConfig, RunConfig


@dataclass(frozen=True)
class AblateOptions:
    """Options of `sfumato ablate`."""

    which: Annotated[tyro.conf.Positional[Literal["edm"]], tyro.conf.arg(metavar="edm")]
    """edm: configurations A to F of EDM's Table 2."""
    data: str = ""
    """A folder, zip, .npy, .npz or IDX file of images, or fashion-mnist:train (built in)."""
    test: str = ""
    """Images held out of training to measure against; the training images if not given."""
    size: tuple[int, int] | None = None
    """Height and width; needed where the images differ in size."""
    layout: Literal["NHWC", "NCHW"] | None = None
    """Axis order of 4-D arrays where it cannot be told from the shape."""
    images: int = 20_000
    """Training images of every configuration."""
    rows: tuple[str, ...] = ()
    """Configurations to train, such as A F; all if not given."""
    columns: tuple[str, ...] = ()
    """vp (DDPM++), ve (NCSN++); both if not given."""
    width: int = 16
    """Channels of the networks at multiplier 1."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1000
    """Images drawn with each."""
    features: str = "efficientnet"
    """What looks at them; as in sfumato evaluate."""
    out: Path = Path("runs/ablate-edm")
    """Folder of the runs and the table; what is finished there is not done again."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""


def run(arguments: Sequence[str]) -> int:
    """Train what is not trained, measure all, print the table."""
    options = parse(
        AblateOptions,
        arguments,
        "ablate",
        "Train the configurations of a paper's ablation at a small size and measure each. "
        "Interrupted, the same command goes on where it stopped.",
    )
    if not options.data:
        raise ConfigError("say what to train on: --data FOLDER, or --data fashion-mnist:train")
    from sfumato.cli.train import findable, train
    from sfumato.recipes.ablation import EDM_COLUMNS, EDM_ROWS, edm_cells
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.evaluation import ablated
    from sfumato.recipes.evaluation.settings import Settings
    from sfumato.recipes.run_config import Bookkeeping, DataConfig

    settings = Settings(("fd",), n=options.n, features=options.features)
    cells = edm_cells(options.images, options.rows, options.columns, options.width)
    data = DataConfig(
        findable(options.data), findable(options.test), options.size, layout=options.layout
    )
    bookkeeping = Bookkeeping(
        report=False, tensorboard=False, sample_every=1_000_000_000, keep=1,
        device=options.device, threads=options.threads,
    )  # fmt: skip
    set_threads(options.threads)
    ablated.try_features(options.features, pick_device(options.device))
    for number, cell in enumerate(cells, 1):
        config = _config(cell, data, bookkeeping)
        folder = options.out / cell.name
        state = _state(folder, config)
        if state == "finished":
            continue
        print(f"\n{number} of {len(cells)}: {cell.name}, {EDM_ROWS[cell.row]}")
        if (code := train(config, folder, resume=state == "begun")) != 0:
            print(f"the same command goes on with {cell.name}")
            return code
    found = [
        ablated.measure(
            options.out / cell.name, cell.row, cell.column, settings, options.test,
            options.out / "cache", pick_device(options.device), print,
        )
        for cell in cells
    ]  # fmt: skip
    table = ablated.table_of([one for one, _ in found], EDM_ROWS, EDM_COLUMNS)
    print("\nFréchet distance\n" + ablated.in_lines(table))
    facts = {
        "data": data.data,
        "measured against": data.test or "the training images",
        "training images": f"{options.images:,} each",
        "n": str(options.n),
        "features": options.features,
        "sampler": "heun 18 (35 calls), karras grid",
    }
    about = "EDM's Table 2 at a small size; lower is nearer to the real images."
    paths = ablated.write_ablation(
        options.out, "EDM's configurations A to F", about, table, found, facts
    )
    for name, path in paths.items():
        print(f"{name}: {path}")
    return 0


def _config(cell: Cell, data: DataConfig, bookkeeping: Bookkeeping) -> RunConfig:
    from sfumato.recipes.run_config import RunConfig

    return RunConfig(cell.recipe, data, bookkeeping)


def _state(folder: Path, config: RunConfig) -> Literal["new", "begun", "finished"]:
    """How far the run of a cell is; ConfigError where the folder holds one of another kind."""
    from sfumato.errors import CheckpointError
    from sfumato.recipes.run_config import RunConfig
    from sfumato.training.checkpoint import read_description
    from sfumato.training.history import latest_checkpoint

    if not folder.exists():
        return "new"
    try:
        before = RunConfig.read(folder / "config.toml")
    except CheckpointError as error:
        raise ConfigError(
            f"{folder} is there but holds no run: remove it, or choose another --out"
        ) from error
    known = replace(before.recipe, process=replace(before.recipe.process, sigma_data=None))
    if known != config.recipe or before.data != config.data:
        raise ConfigError(
            f"{folder} holds a run of other images, length or settings: choose another --out"
        )
    try:
        images = read_description(latest_checkpoint(folder).path)["images"]
    except CheckpointError:
        return "begun"
    return "finished" if images >= config.recipe.images else "begun"
