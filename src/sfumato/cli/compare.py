"""`sfumato compare RUN --solvers ... --nfe ...`: which sampler is best for how many calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args

import tyro

from sfumato.cli.parse import parse
from sfumato.cli.sampler_options import CommonOptions
from sfumato.errors import ConfigError
from sfumato.recipes.config import GridName, SolverName

_DEFAULT: tuple[SolverName, ...] = ("euler", "heun", "dpm++2m", "multistep", "unipc", "deis")


@dataclass(frozen=True)
class CompareOptions:
    """Options of `sfumato compare`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")] = ""
    """A run's folder, or one checkpoint folder."""
    solvers: tuple[SolverName, ...] = _DEFAULT
    """Solvers to compare; --list names them all."""
    nfe: tuple[int, ...] = (5, 9, 17, 35)
    """Network calls an image may cost; a solver that cannot spend exactly so many is left out."""
    ddim_table: bool = False
    """DDIM's Table 1 instead: eta 0, 0.2, 0.5, 1 at so many steps as --nfe lists."""
    data: str = ""
    """Real images to compare with; the run's test images (else its training images)."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1000
    """Images to draw with each."""
    reference_n: int = 10_000
    """Real images to compare with, a fixed random pick; 0: all."""
    features: str = "efficientnet"
    """What looks at them; as in sfumato evaluate."""
    seed: int = 0
    """Image i is seeded with seed + i, for every sampler."""
    list: bool = False
    """List solvers and grids, and stop."""
    sampler: Annotated[CommonOptions, tyro.conf.arg(name="")] = field(default_factory=CommonOptions)
    """Sampler: what all have in common, such as --grid, --rho or --guidance."""
    out: Path | None = None
    """Folder of the results; RUN/comparison if not given."""
    cache: Path | None = None
    """Folder of drawn images and features; RUN/evaluation/cache if not given."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""


def run(arguments: Sequence[str]) -> int:
    """Compare, print the table, and say where the plot is."""
    options = parse(
        CompareOptions,
        arguments,
        "compare",
        "Draw the same seeds with several samplers and measure each. Interrupted, the same command "
        "goes on where it stopped.",
    )
    if options.list:
        print("solvers: " + ", ".join(get_args(SolverName)))
        print("grids: " + ", ".join(get_args(GridName)))
        print("what each is: docs/sampling.md; its options: sfumato sample --help")
        return 0
    if not options.run:
        raise ConfigError("say which run: sfumato compare RUN")
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.evaluation import compare as work
    from sfumato.recipes.evaluation.job import Places, of_run
    from sfumato.recipes.evaluation.settings import Settings

    set_threads(options.threads)
    device = pick_device(options.device)
    settings = Settings(
        ("fd",), n=options.n, reference_n=options.reference_n, features=options.features,
        seed=options.seed,
    )  # fmt: skip
    task = of_run(
        options.run,
        settings,
        Places(options.out, options.cache),
        test=options.data,
        sampler=options.sampler.over,
        device=device,
    )
    drawn = task.samples[0]
    reference = next((ref.images for ref in task.references if ref.images is not None), None)
    assert isinstance(drawn, work.Drawn)
    if reference is None:
        raise ConfigError("compare needs real images: give --data")
    if options.ddim_table:
        trials, left_out = work.ddim_trials(drawn.sampler, options.nfe), []
    else:
        trials, left_out = work.trials(drawn.sampler, options.solvers, options.nfe)
    if not trials:
        raise ConfigError("none of these solvers can spend these calls: " + "; ".join(left_out))
    for reason in left_out:
        print(f"left out: {reason}")
    done = list(
        work.compare(drawn.model, trials, reference, settings, task.cache, device=device, say=print)
    )
    assert task.run is not None
    facts = {
        "run": str(task.run),
        "weights": drawn.model.fingerprint,
        "n": options.n,
        "seed": options.seed,
        "reference": f"{reference.name}, {len(reference):,}",
        "features": options.features,
        "grid": drawn.sampler.grid,
        "guidance": drawn.sampler.guidance,
    }
    out = options.out or task.run / "comparison"
    paths = work.write_comparison(out, f"{task.run.name}: samplers compared", facts, done, left_out)
    print()
    print(work.table_of([result for result, _ in done]))
    for name, path in paths.items():
        print(f"{name}: {path}")
    return 0
