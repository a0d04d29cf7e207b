"""`sfumato restore RUN IMAGES...`: damaged images, with a trained model as prior."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.cli.parse import OutPath, check_seeds, duration, free_folder, parse
from sfumato.cli.restore_inputs import (
    FILES,
    below,
    check_tiffs,
    listed,
    names_in,
    one_file,
    partner,
    png_instead,
)
from sfumato.cli.sampler_options import SamplerOptions
from sfumato.errors import ConfigError, DataError
from sfumato.recipes.restoring.names import MethodName

if TYPE_CHECKING:
    from sfumato.recipes.model import Model
    from sfumato.recipes.restoring import Drawing, Given, Score, Scorer, Shown, Task


@dataclass(frozen=True)
class RestoreOptions:
    """Options of `sfumato restore`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (its newest checkpoint), or one checkpoint folder."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGES...")]
    """Damaged images, of any size from the model's up; or a folder of them."""
    out: OutPath = None
    """A file (for one image and one answer) or a folder; RUN/restored/... if not given."""
    mask: Path | None = None
    """Where images are damaged (not black), or a folder of masks of the images' names. Transparent
    pixels and NaN count too."""
    nodata: float | None = None
    """A pixel value that stands for nothing; a TIFF's own if not given."""
    channels: int | None = None
    """Turn images into so many channels (1 or 3)."""
    super_resolve: int | None = None
    """Images are this many times smaller than they should be."""
    deblur: str | None = None
    """Images were blurred: gaussian:DEVIATION in pixels, or a kernel as .npy or image."""
    denoise: str | None = None
    """Images have white noise of this deviation, in pixel values; auto estimates it."""
    colorize: bool = False
    """Images are grey, and the model's are in colours."""
    op: str | None = None
    """What was done to images of the model's size, FILE.py:NAME, with __call__(x) and adjoint(y)
    (docs/restoration.md)."""
    noise: str = "0"
    """Deviation of what is known, in pixel values, or auto: it need not be kept exactly then."""
    truth: Path | None = None
    """The undamaged image, or a folder of them, to tell how near the answers are."""
    method: MethodName | None = None
    """How the measurement enters (docs/restoration.md compares them); if not given, spectral where
    the model knows its data's frequencies, else moment-matching."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Plausible answers for each image; several come with their mean and spread."""
    seed: int = 0
    """Answer i is seeded with seed + i."""
    rounds: int | None = None
    """Conjugate gradients a step (moment-matching alone; 2 if not given)."""
    times: int | None = None
    """Walks of every level (repaint alone; 4 if not given)."""
    walk: int | None = None
    """Steps of every way down (daps alone; 4 if not given)."""
    overlap: float = 0.5
    """Share of a window that the next one covers too, in images larger than the model's."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name or number of the class the images are of (models trained with --classes)."""
    sampler: Annotated[SamplerOptions, tyro.conf.arg(name="")] = field(
        default_factory=SamplerOptions
    )
    """Sampler; if not given, 18 steps of dpm++2m-sde (spectral, moment-matching, pairs) or of DDIM
    with eta 1; --batch is of answers to one image, 1."""
    force: bool = False
    """Replace files that are there."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: int = 0
    """CPU threads; 0 is PyTorch's default."""


def run(arguments: Sequence[str]) -> int:
    """Restore, and say where the answers are."""
    options = parse(
        RestoreOptions,
        arguments,
        "restore",
        "Restore damaged images: fill in what is missing, enlarge, deblur, denoise, colour. With "
        "any model of such images, or with one trained on pairs.",
    )
    from sfumato.files import usable
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.loading import load
    from sfumato.recipes.restoring import Drawing, How, Task, usual_sampler

    task = Task(
        options.super_resolve, options.deblur, options.denoise, options.colorize, options.op
    )
    if options.denoise is not None and options.method is not None:
        raise ConfigError(
            "--denoise begins the walk at the noise's own level, where no method is needed: leave "
            "out --method"
        )
    how = How(
        options.method, options.n, options.seed, options.rounds, options.times, options.walk,
        options.overlap,
    )  # fmt: skip
    check_seeds(options.seed, max(options.n, 1))
    images = listed(options.images)
    single = one_file(options.out, len(images), options.n, options.force)
    set_threads(options.threads)
    model = load(options.run, device=pick_device(options.device))
    for note in model.notes:
        print(f"note: {note}")
    usual = usual_sampler(model.recipe.sampler, how.method_for(model))
    drawing = Drawing(model, how, options.sampler.over(usual), options.class_)
    out = options.out or free_folder(model.run / "restored" / images[0].stem)
    if single and out.suffix.lower() == ".png" and png_instead(model) != ".png":
        raise ConfigError(
            f"{out}: a PNG cannot hold {model.format.channels} x {model.format.dtype} here: write "
            f"{png_instead(model)}"
        )
    if not single and out.is_file():
        raise ConfigError(f"{out} is a file: end its name in {', '.join(FILES)}, or name a folder")
    if not single and out.exists() and any(out.iterdir()) and not options.force:
        raise ConfigError(f"{out} holds files already: --force replaces them, or give another -o")
    usable(out.parent if single else out)
    whole = (lambda _: out) if single else None
    names = [whole or names_in(out, path, options.images, model) for path in images]
    check_tiffs([name("") for name in names])
    start = time.perf_counter()
    found = _all(options, drawing, task, images, names)
    taken = time.perf_counter() - start
    answers = "" if how.answers == 1 else f", {how.answers} answers each"
    print(f"{_counted(found.count, 'image')}{answers}, in {duration(taken)}")
    _tell_scores(found)
    if not found.count:
        raise DataError(f"none of {_counted(len(images), 'image')} could be restored")
    if single:
        print(f"restored: {out}")
        return 0
    page = _page(options, model, drawing, found, out, taken)
    print(f"page: {page}")
    print(f"restored: {out}")
    left = len(images) - found.count
    if left:
        print(
            f"sfumato restore: {left} of {_counted(len(images), 'image')} could not be restored",
            file=sys.stderr,
        )
    return 1 if left else 0


@dataclass
class _Found:
    """What is kept of restored images: how many, some to show, and how near they are."""

    scorer: Scorer
    count: int = 0
    shown: list[Shown] = field(default_factory=list["Shown"])
    near: list[Score] = field(default_factory=list["Score"])

    def add(self, one: Shown | None, most: int) -> None:
        self.count += 1
        if one is None:
            return
        self.near += self.scorer(one)
        if one.small and len(self.shown) < most:
            self.shown.append(one)


def _all(
    options: RestoreOptions, drawing: Drawing, task: Task, images: list[Path],
    names: list[Callable[[str], Path]],
) -> _Found:  # fmt: skip
    """Restore image by image, leaving out those of several that turn out to be unusable."""
    from tqdm import tqdm

    from sfumato.recipes.restoring import PICTURES, Scorer, restore

    found = _Found(Scorer())
    every = [_given(options, path, images) for path in images]
    _check_all(drawing, task, images, every)

    def tick(share: float) -> None:
        bar.update(min(share, bar.total - bar.n))  # rounding may add up to more

    bar = tqdm(total=len(images), unit="image", bar_format=_BAR, leave=False)
    with bar:
        for place, path in enumerate(images):
            try:
                done = restore(drawing, task, path, every[place], names[place], tick)
            except (DataError, ConfigError, ValueError, FloatingPointError, OSError) as error:
                if len(images) == 1 or (isinstance(error, ConfigError) and place == 0):
                    raise
                bar.write(f"sfumato restore: {path.name} is left out: {error}", sys.stderr)
                continue
            finally:
                bar.n = place + 1
                bar.refresh()
            found.add(done.shown, PICTURES)
            if done.notes:
                bar.write(f"{path.name}: {'; '.join(done.notes)}")
    return found


def _check_all(drawing: Drawing, task: Task, images: list[Path], every: list[Given]) -> None:
    """Say everything that headers tell against the images before anything is written."""
    from sfumato.recipes.restoring import check

    problems: list[DataError | ConfigError] = []
    for path, given in zip(images, every, strict=True):
        try:
            check(drawing, task, path, given)
        except (DataError, ConfigError) as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        told = "; ".join(map(str, problems[:5])) + ("; ..." if problems[5:] else "")
        raise DataError(f"{len(problems)} of {_counted(len(images), 'image')} do not fit: {told}")


_LINES = 40
"""Scores that are printed one by one; more of them are on the page alone."""
_BAR = "{l_bar}{bar}| {n:.2f}/{total} images [{elapsed}, {remaining} left]"


def _given(options: RestoreOptions, path: Path, images: list[Path]) -> Given:
    from sfumato.recipes.restoring import Given

    told = len(images), below(path, options.images)
    return Given(
        partner(options.mask, path, "--mask", *told),
        options.nodata,
        options.channels,
        options.noise,
        partner(options.truth, path, "--truth", *told),
    )


def _task_in_words(options: RestoreOptions) -> str:
    if options.super_resolve is not None:
        return f"enlarge {options.super_resolve} times"
    if options.deblur is not None:
        return f"deblur, {options.deblur}"
    if options.denoise is not None:
        known = options.denoise != "auto"
        return f"remove noise, {options.denoise} pixel values" if known else "remove noise"
    if options.op is not None:
        return f"invert {options.op}"
    return "colour" if options.colorize else "fill in what is missing"


def _tell_scores(found: _Found) -> None:
    """Print how near the answers are, where the truth is known."""
    from sfumato.recipes.restoring import averages

    each = found.near if len(found.near) <= _LINES else []
    for line in (*each, *averages(found.near), *found.scorer.missing):
        print(line)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _page(
    options: RestoreOptions, model: Model, drawing: Drawing, found: _Found, out: Path,
    taken: float,
) -> Path:  # fmt: skip
    from sfumato.recipes.restoring import write_page

    config = drawing.sampler
    method = drawing.method or "trained on pairs"
    if drawing.method and options.denoise is not None:
        method = "sampled from the noise's level on"
    facts = {
        "model": f"{model.recipe.name}, {model.path}",
        "task": _task_in_words(options) if model.condition is None else "as in the pairs",
        "method": method,
        "sampler": f"{config.solver}, {len(drawing.grid()) - 1} steps"
        + (", averaged over mirror images" if config.mirror else ""),
        "answers": f"{drawing.how.answers}, from seed {drawing.how.seed}",
        "answers at once": f"{config.batch}",
        "images": str(found.count),
        "time": duration(taken),
    }
    if options.noise != "0":
        facts["noise"] = f"{options.noise} pixel values"
    return write_page(out, _counted(found.count, "restored image"), found.shown, found.near, facts)
