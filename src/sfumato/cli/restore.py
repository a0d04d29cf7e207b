"""`sfumato restore RUN IMAGES...`: damaged images, with a trained model as prior."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sfumato.cli.parse import duration, free_folder, parse
from sfumato.cli.sampler_options import SamplerOptions
from sfumato.errors import ConfigError
from sfumato.recipes.restoring.names import MethodName

if TYPE_CHECKING:
    from sfumato.recipes.model import Model
    from sfumato.recipes.restoring import Done, Drawing, Given, Task

_FILES = (".png", ".tif", ".tiff", ".npy")


@dataclass(frozen=True)
class RestoreOptions:
    """Options of `sfumato restore`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder (its newest checkpoint), or one checkpoint folder."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGES...")]
    """Damaged images, of any size from the model's up; or a folder of them."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
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
    """What was done, FILE.py:NAME, with __call__(x) and adjoint(y) (docs/restoration.md)."""
    noise: str = "0"
    """Deviation of what is known, in pixel values, or auto: it need not be kept exactly then."""
    truth: Path | None = None
    """The undamaged image, or a folder of them, to tell how near the answers are."""
    method: MethodName = "moment-matching"
    """How the measurement enters; docs/restoration.md compares them."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Plausible answers for each image; several come with their mean and spread."""
    seed: int = 0
    """Answer i is seeded with seed + i."""
    rounds: int = 2
    """Conjugate gradients a step (moment-matching)."""
    times: int = 4
    """Walks of every level (repaint)."""
    walk: int = 4
    """Steps of every way down (daps)."""
    overlap: float = 0.5
    """Share of a window that the next one covers too, in images larger than the model's."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name or number of the class the images are of (models trained with --classes)."""
    sampler: Annotated[SamplerOptions, tyro.conf.arg(name="")] = field(
        default_factory=SamplerOptions
    )
    """Sampler; DDIM with eta 1, 18 steps, if not given."""
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
    from sfumato.recipes.environment import pick_device, set_threads
    from sfumato.recipes.model import load
    from sfumato.recipes.restoring import Drawing, How, Task, usual_sampler

    task = Task(
        options.super_resolve, options.deblur, options.denoise, options.colorize, options.op
    )
    how = How(
        options.method, options.n, options.seed, options.rounds, options.times, options.walk,
        options.overlap,
    )  # fmt: skip
    images = _listed(options.images)
    single = _single(options, images)
    set_threads(options.threads)
    model = load(options.run, device=pick_device(options.device))
    for note in model.notes:
        print(f"note: {note}")
    usual = model.recipe.sampler if model.condition else usual_sampler(model.recipe.sampler)
    drawing = Drawing(model, how, options.sampler.over(usual), options.class_)
    out = options.out or free_folder(model.run / "restored" / images[0].stem)
    if single and out.suffix.lower() == ".png" and _png_instead(model) != ".png":
        raise ConfigError(
            f"{out}: a PNG cannot hold {model.format.channels} x {model.format.dtype} here: write "
            f"{_png_instead(model)}"
        )
    if not single and out.is_file():
        raise ConfigError(f"{out} is a file: end its name in {', '.join(_FILES)}, or name a folder")
    if not single and out.exists() and any(out.iterdir()) and not options.force:
        raise ConfigError(f"{out} holds files already: --force replaces them, or give another -o")
    start = time.perf_counter()
    found = _all(options, drawing, task, images, out, single)
    taken = time.perf_counter() - start
    answers = "" if how.answers == 1 else f", {how.answers} answers each"
    print(f"{_counted(len(images), 'image')}{answers}, in {duration(taken)}")
    _tell_scores(found)
    if single:
        print(f"restored: {out}")
        return 0
    page = _page(options, model, drawing, found, out, taken)
    print(f"page: {page}")
    print(f"restored: {out}")
    return 0


def _all(
    options: RestoreOptions, drawing: Drawing, task: Task, images: list[Path], out: Path,
    single: bool,
) -> list[Done]:  # fmt: skip
    from tqdm import tqdm

    from sfumato.recipes.restoring import restore

    found: list[Done] = []
    every = [_given(options, path, images) for path in images]
    with tqdm(total=len(images), unit="image", bar_format=_BAR) as bar:
        for place, path in enumerate(images):
            name = (lambda _, out=out: out) if single else _names(out, path, drawing.model)
            done = restore(drawing, task, path, every[place], name, bar.update)
            bar.n = place + 1
            bar.refresh()
            found.append(done)
            if done.notes:
                tqdm.write(f"{path.name}: {'; '.join(done.notes)}")
    return found


_BAR = "{l_bar}{bar}| {n:.2f}/{total} images [{elapsed}, {remaining} left]"


def _given(options: RestoreOptions, path: Path, images: list[Path]) -> Given:
    from sfumato.recipes.restoring import Given

    return Given(
        _partner(options.mask, path, "--mask", len(images)),
        options.nodata,
        options.channels,
        options.noise,
        _partner(options.truth, path, "--truth", len(images)),
    )


def _partner(given: Path | None, path: Path, option: str, count: int) -> Path | None:
    """The file of a folder that has an image's name; a file is for all."""
    if given is None or not given.is_dir():
        if given is not None and not given.exists():
            raise ConfigError(f"{option} {given} does not exist")
        if given is not None and count > 1 and option == "--truth":
            raise ConfigError(f"{option} is one file, and there are {count} images: give a folder")
        return given
    there = [one for one in sorted(given.iterdir()) if one.stem == path.stem]
    if len(there) != 1:
        raise ConfigError(
            f"{option} {given}: expected one file named {path.stem}.*, got {len(there)}"
        )
    return there[0]


def _listed(given: Sequence[Path]) -> list[Path]:
    """Files, and those in folders."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = [p for p in sorted(path.iterdir()) if p.is_file() and p.name[0] != "."]
            if not inside:
                raise ConfigError(f"{path} holds no images")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"{path} does not exist")
    if not found:
        raise ConfigError("give images: sfumato restore RUN IMAGE --mask MASK")
    stems = [path.stem for path in found]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise ConfigError(f"two images are called {twice}: restore them one after another")
    return found


def _single(options: RestoreOptions, images: list[Path]) -> bool:
    """Whether one file is written; ConfigError where it cannot be, or is there."""
    out = options.out
    if out is None or out.suffix.lower() not in _FILES or out.is_dir():
        if out is not None and out.suffix and not out.is_dir():
            raise ConfigError(f"images are written as {', '.join(_FILES)} or into a folder: {out}")
        return False
    if len(images) > 1 or options.n > 1:
        raise ConfigError(f"{len(images)} images of {options.n} answers: give a folder, not {out}")
    if out.exists() and not options.force:
        raise ConfigError(f"{out} exists already: --force replaces it, or give another -o")
    return True


def _names(out: Path, path: Path, model: Model) -> Callable[[str], Path]:
    """Names in a folder, of the image's own kind where it can hold the model's images."""
    suffix = path.suffix.lower() if path.suffix.lower() in _FILES else ".png"
    if suffix == ".png":
        suffix = _png_instead(model)
    return lambda ending: out / f"{path.stem}{ending}{suffix}"


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


def _png_instead(model: Model) -> str:
    """.png, or what holds the model's images where a PNG cannot."""
    from sfumato.data.save import default_suffix

    return default_suffix(model.format)


def _tell_scores(found: list[Done]) -> None:
    from sfumato.recipes.restoring import scores

    for one in found:
        if one.shown is None:
            continue
        for what, (peak, similar) in scores(one.shown, one.form).items():
            ssim = "" if similar is None else f", SSIM {similar:.4f}"
            print(f"{one.shown.name}, {what}: PSNR {peak:.2f} dB{ssim}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _page(
    options: RestoreOptions, model: Model, drawing: Drawing, found: list[Done], out: Path,
    taken: float,
) -> Path:  # fmt: skip
    from sfumato.recipes.restoring import write_page

    shown = [one.shown for one in found if one.shown is not None]
    forms = {one.shown.name: one.form for one in found if one.shown is not None}
    config = drawing.sampler
    method: str = drawing.how.method
    if model.condition is not None:
        method = "trained on pairs"
    elif options.denoise is not None:
        method = "sampled from the noise's level on"
    facts = {
        "model": f"{model.recipe.name}, {model.path}",
        "task": _task_in_words(options) if model.condition is None else "as in the pairs",
        "method": method,
        "sampler": f"{config.solver}, {len(drawing.grid()) - 1} steps",
        "answers": f"{drawing.how.answers}, from seed {drawing.how.seed}",
        "images": str(len(found)),
        "time": duration(taken),
    }
    if options.noise != "0":
        facts["noise"] = f"{options.noise} pixel values"
    return write_page(out, _counted(len(found), "restored image"), shown, forms, facts)
