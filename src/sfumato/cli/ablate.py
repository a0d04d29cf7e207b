"""`sfumato ablate`: a paper's ablation, trained, sampled and measured by one command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.cli.parse import OutPath, parse
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.recipes.ablations import Ablation
    from sfumato.recipes.run_config import RunConfig


@dataclass(frozen=True)
class AblateOptions:
    """Options of `sfumato ablate`."""

    which: Annotated[
        tyro.conf.Positional[Literal["edm", "ddpm", "scaling"]],
        tyro.conf.arg(metavar="{edm,ddpm,scaling}"),
    ]
    """edm: configurations A to F of EDM's Table 2. ddpm: prediction, objective and variance, DDPM's
    Table 2. scaling: width and training time, Improved DDPM's Figure 10."""
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
    """Configurations to train: A to F (edm); bound-learned, bound-fixed, simple (ddpm); all if not
    given."""
    columns: tuple[str, ...] = ()
    """vp, ve (edm: DDPM++, NCSN++); mean, noise (ddpm: what is predicted); both if not given."""
    width: int = 16
    """Channels of the networks at multiplier 1 (edm, ddpm)."""
    widths: tuple[int, ...] = (8, 16, 32)
    """The same (scaling)."""
    levels: int = 100
    """Noise levels of the ladder (ddpm)."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 500
    """Images drawn with each; bits per dimension are measured on as many real ones."""
    features: str = "efficientnet"
    """What looks at them; as in sfumato evaluate."""
    out: OutPath = None
    """Folder of the runs and the table, runs/ablate-WHICH if not given; what is finished there is
    not done again."""
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
    from sfumato.files import usable
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.evaluation import ablated
    from sfumato.recipes.evaluation.settings import Settings
    from sfumato.recipes.run_config import Bookkeeping, DataConfig, RunConfig

    ablation = _ablation(options)
    out = usable(options.out or Path(f"runs/ablate-{options.which}"))
    settings = Settings(("fd",), n=options.n, features=options.features)
    data = DataConfig(
        findable(options.data), findable(options.test), options.size, layout=options.layout
    )
    bookkeeping = Bookkeeping(
        report=False, tensorboard=False, sample_every=1_000_000_000,
        save_every=ablation.save_every, keep=ablation.keep,
        device=options.device, threads=options.threads,
    )  # fmt: skip
    set_threads(options.threads)
    device = pick_device(options.device)
    ablated.try_features(options.features, device)
    for number, (name, cell) in enumerate(ablation.runs.items(), 1):
        config = RunConfig(cell.recipe, data, bookkeeping)
        state = _state(out / name, config)
        if state == "finished":
            continue
        about = ablation.rows[cell.row] if cell.step is None else ablation.columns[cell.column]
        print(f"\n{number} of {len(ablation.runs)}: {name}, {about}")
        if (code := train(config, out / name, resume=state == "begun")) != 0:
            print(f"the same command goes on with {name}")
            return code
    found = [
        ablated.measure(cell, out, settings, options.test, device, print, bits=ablation.bits)
        for cell in ablation.cells
    ]
    for title, table in ablated.tables_of(ablation, [one for one, _ in found]).items():
        print(f"\n{title}\n" + ablated.in_lines(table))
    sampler = ablation.cells[0].recipe.sampler
    facts = {
        "data": data.data,
        "measured against": data.test or "the training images",
        "training images": f"{ablation.cells[0].recipe.images:,} each",
        "n": str(options.n),
        "features": options.features,
        "sampler": f"{sampler.solver}, {sampler.steps} steps, grid {sampler.grid}",
    }
    for name, path in ablated.write_ablation(out, ablation, found, facts).items():
        print(f"{name}: {path}")
    return 0


def _ablation(options: AblateOptions) -> Ablation:
    from sfumato.recipes.ablations import ddpm_ablation, edm_ablation, scaling

    o = options
    match o.which:
        case "edm":
            return edm_ablation(o.images, o.rows, o.columns, o.width)
        case "ddpm":
            return ddpm_ablation(o.images, o.rows, o.columns, o.width, o.levels)
        case "scaling":
            if o.rows or o.columns:
                raise ConfigError("scaling has no --rows or --columns: choose --widths")
            return scaling(o.images, o.widths)


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
