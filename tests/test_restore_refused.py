"""`sfumato restore` given what it cannot use: clear words, an exit code, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from restore_helpers import hole, listing, picture, restore, trained
from sfumato.cli import main

Capture = pytest.CaptureFixture[str]
KINDS = ("rgb", "classes", "pairs", "float")

OPERATORS = """
import torch

class Wrong:
    def __call__(self, x): return x[..., ::2, :]
    def adjoint(self, y): return torch.stack([2 * y, 0 * y], -2).flatten(-3, -2)

class Half:
    def __call__(self, x): return x[..., ::2, :]
    def adjoint(self, y): return torch.stack([y, 0 * y], -2).flatten(-3, -2)

class Sums:
    def __call__(self, x): return x.flatten(1).sum(1, keepdim=True)
    def adjoint(self, y): return y[:, :, None, None].expand(-1, 3, 8, 8)

class Single:
    matrix = torch.eye(8)
    def __call__(self, x): return x @ self.matrix
    def adjoint(self, y): return y @ self.matrix

class Alone:
    def __call__(self, x): return x[:1]
    def adjoint(self, y): return y

class Curved:
    def __call__(self, x): return x.abs()
    def adjoint(self, y): return y

class Crooked:
    def __call__(self, x): return x @ torch.ones(5, 5).to(x)
    def adjoint(self, y): return y

class NoAdjoint:
    def __call__(self, x): return x

class Needy(Half):
    def __init__(self, factor): pass
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: trained(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, masks, kernels and operators of every kind."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "b.png")
    picture(tmp_path / "half.png", 4, 8)
    picture(tmp_path / "large.png", 20, 16)
    picture(tmp_path / "low.png", 7, 30)
    picture(tmp_path / "grey.png", channels=1)
    picture(tmp_path / "deep.png", channels=1, dtype="uint16")
    picture(tmp_path / "f.npy", channels=2, dtype="float32")
    picture(tmp_path / "pair.npy", channels=2, dtype="uint16")
    np.save(tmp_path / "whole.npy", np.ones(1, np.int64))
    # Sparse: 36 million zeros.
    np.lib.format.open_memmap(tmp_path / "scene.npy", "w+", np.uint8, (3, 3000, 4000)).flush()
    np.save(tmp_path / "deep.npy", np.ones((3, 4, 8), np.uint16))
    picture(tmp_path / "twice" / "a.png")
    picture(tmp_path / "full" / "there.png")
    hole(tmp_path / "m.png")
    hole(tmp_path / "wide.png", 8, 9)
    hole(tmp_path / "masks" / "a.png")
    Image.new("L", (8, 8), 0).save(tmp_path / "none.png")
    Image.fromarray(np.full((8, 8, 4), (9, 9, 9, 0), np.uint8)).save(tmp_path / "clear.png")
    np.save(tmp_path / "kernel9.npy", np.ones((9, 9)))
    np.save(tmp_path / "zero.npy", np.zeros((3, 3)))
    np.save(tmp_path / "three.npy", np.ones((3, 3, 3)))
    (tmp_path / "broken.npy").write_bytes(b"")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "ops.py").write_text(OPERATORS)
    (tmp_path / "bad.py").write_text("import no_such_module\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain").write_text("kept")
    return tmp_path


HERE = "a.png --mask m.png"
REFUSED: dict[str, tuple[str, str, str]] = {
    "mask of another size": ("rgb", "a.png --mask wide.png", "x width of a.png), got 8 x 9"),
    "empty mask": ("rgb", "a.png --mask none.png", "nothing is missing"),
    "no mask": ("rgb", "a.png", "mark what is, by --mask, transparent pixels"),
    "missing mask": ("rgb", "a.png --mask gone.png", "--mask gone.png does not exist"),
    "no mask of that name": ("rgb", "in --mask masks", "expected one file named b.*, got 0"),
    "missing image": ("rgb", "gone.png --mask m.png", "gone.png does not exist"),
    "no image": ("rgb", "--mask m.png", "give images: sfumato restore RUN IMAGE"),
    "broken image": ("rgb", "broken.png --mask m.png", "can be read"),
    "empty folder": ("rgb", "empty", "empty holds no images"),
    "two of one name": ("rgb", "a.png twice/a.png --mask m.png", "two images are called a"),
    "no run": ("gone", HERE, "gone"),
    "grey": ("rgb", "grey.png --mask m.png", "3 x uint8, got 1 x uint8: add --channels 3"),
    "grey to deblur": ("rgb", "grey.png --deblur gaussian:1", "add --channels 3"),
    "deep": ("rgb", "deep.png --mask m.png", "give uint8 images: bit depths are not converted"),
    "small": ("rgb", "low.png --nodata 0", "7 x 30 pixels, smaller than the 8 x 8 that the model"),
    "small to denoise": ("rgb", "low.png --denoise 5", "smaller than the 8 x 8"),
    "nodata": ("rgb", "a.png --nodata -9999", "a whole number from 0 to 255, got -9999"),
    "nodata and a task": ("rgb", "a.png --nodata 0 --denoise 5", "exclude other tasks"),
    "mask and a task": ("rgb", HERE + " --super-resolve 2", "exclude other tasks"),
    "tasks": ("rgb", "a.png --denoise 5 --colorize", "--denoise and --colorize exclude each other"),
    "factor": ("rgb", "a.png --super-resolve 1", "by 2 or more, not 1"),
    "noise in words": ("rgb", HERE + " --noise much", 'or "auto", not \'much\''),
    "noise below 0": ("rgb", HERE + " --noise -1", "0 or more"),
    "noise and method": ("rgb", "a.png --denoise 5 --method dps", "leave out --method"),
    "noise twice": ("rgb", "a.png --denoise 5 --noise 5", "leave out --noise"),
    "no noise": ("rgb", "a.png --denoise 0", "noise above 0 to remove, not 0"),
    "little noise": ("rgb", "a.png --denoise 0.0001", "below what this model knows"),
    "holes and noise": ("rgb", "clear.png --denoise 5", "say --noise 5 in place of --denoise 5"),
    "noise of nothing": ("rgb", "clear.png --noise auto", "tell it as a number"),
    "large kernel": ("rgb", "a.png --deblur kernel9.npy", "9 x 9, is larger than the image, 8 x 8"),
    "large gaussian": ("rgb", "a.png --deblur gaussian:5", "is larger than the image, 8 x 8"),
    "gaussian": ("rgb", "a.png --deblur gaussian:wide", "as gaussian:1.5, not gaussian:wide"),
    "kernel missing": ("rgb", "a.png --deblur gone.npy", "gone.npy does not exist: a kernel is"),
    "kernel empty": ("rgb", "a.png --deblur broken.npy", "cannot be read as a kernel"),
    "kernel no picture": ("rgb", "a.png --deblur broken.png", "cannot be read as a kernel"),
    "kernel of 0": ("rgb", "a.png --deblur zero.npy", "with a sum above 0"),
    "kernel of 3": ("rgb", "a.png --deblur three.npy", "a kernel is [h, w]"),
    "colours in colours": ("float", "f.npy --colorize", "needs a model of RGB images, not 2"),
    "pairs and a method": ("pairs", "pair.npy --method dps", "what to restore: leave out"),
    "deblur by ddrm": ("rgb", "a.png --deblur gaussian:.5 --method ddrm", "choose another"),
    "single precision": ("rgb", "a.png --op ops.py:Single", "must follow x's dtype and device"),
    "one at a time": ("rgb", "a.png --op ops.py:Alone --batch 2", "an operator takes any batch"),
    "whole numbers": ("rgb", "whole.npy --op ops.py:Sums", "which are no pixels: expected floats"),
    "other pixels": ("rgb", "deep.npy --op ops.py:Half", "give uint8 images"),
    "truth of a scene": ("rgb", "scene.npy --nodata 0 --truth scene.npy", "at most 34 million"),
    "noise of a scene": ("rgb", "scene.npy --nodata 0 --noise auto", "at most 34 million values"),
    "wrong adjoint": ("rgb", "half.png --op ops.py:Wrong", "adjoint is wrong: <A x, y> is"),
    "curved": ("rgb", "a.png --op ops.py:Curved", "--op ops.py:Curved"),
    "failing": ("rgb", "a.png --op ops.py:Crooked", "--op ops.py:Crooked: RuntimeError"),
    "no adjoint": ("rgb", "a.png --op ops.py:NoAdjoint", "has __call__(x) and adjoint(y)"),
    "needy": ("rgb", "a.png --op ops.py:Needy", "fails: TypeError"),
    "no such name": ("rgb", "a.png --op ops.py:Gone", "ops.py holds no Gone"),
    "no such file": ("rgb", "a.png --op gone.py:Half", "expected --op FILE.py:NAME of a file that"),
    "no name": ("rgb", "a.png --op ops.py", "expected --op FILE.py:NAME"),
    "no python": ("rgb", "a.png --op m.png:Half", "--op FILE.py:NAME of Python code"),
    "not imported": ("rgb", "a.png --op bad.py:Half", "fails: ModuleNotFoundError"),
    "of another size": ("rgb", "a.png --op ops.py:Half", "measures [3, 4, 8] of images [3, 8, 8]"),
    "no image measured": ("rgb", "a.png --op ops.py:Sums", "which is no image: give it as .npy"),
    "broken values": ("rgb", "broken.npy --op ops.py:Half", "can be read"),
    "no spectrum": ("rgb", "half.png --op ops.py:Half --noise 5 --method ddrm", "choose another"),
    "unknown class": ("classes", HERE + " --class oek", "did you mean 'oak'?"),
    "no class": ("classes", HERE, "add --class, one of beech, oak"),
    "class of none": ("rgb", HERE + " --class oak", "trained without classes"),
    "no answers": ("rgb", HERE + " -n 0", "-n (answers) must be at least 1, not 0"),
    "overlap": ("rgb", HERE + " --overlap 1", "from 0 to below 1, not 1"),
    "rounds": ("rgb", HERE + " --rounds 0", "rounds must be at least 1"),
    "rounds of another": ("rgb", HERE + " --method dps --rounds 3", "--rounds is of the method"),
    "times of another": ("rgb", HERE + " --times 3", "add --method repaint"),
    "walk of pairs": ("pairs", "pair.npy --walk 3", "no method is needed here: leave it out"),
    "file there": ("rgb", HERE + " -o half.png", "half.png exists already: --force"),
    "folder there": ("rgb", HERE + " -o full", "full holds files already: --force"),
    "file as a folder": ("rgb", HERE + " -o plain", "plain is a file"),
    "file for several": ("rgb", HERE + " -n 2 -o new.png", "give a folder, not new.png"),
    "jpeg": ("rgb", HERE + " -o new.jpg", "images are written as .png"),
    "float in a png": ("float", "f.npy --mask m.png -o new.png", "a PNG cannot hold 2 x float32"),
    "missing truth": ("rgb", HERE + " --truth gone.png", "--truth gone.png does not exist"),
    "truth of another size": ("rgb", HERE + " --truth large.png", "the truth is 3 x 20 x 16 uint8"),
    "truth of another size 2": ("rgb", "a.png --denoise 5 --truth large.png", "the truth is"),
    "one truth": ("rgb", "in --mask m.png --truth a.png", "there are 2 images: give a folder"),
    "pairs and a mask": ("pairs", "pair.npy --mask m.png", "trained on pairs and knows from them"),
    "pairs and a task": ("pairs", "pair.npy --denoise 5", "leave out --mask and the tasks"),
    "pairs of others": ("pairs", "a.png", "2 x uint16, got 3 x uint8"),
    "solver": ("rgb", HERE + " --grid uniform", "ladder"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, runs: dict[str, Path], here: Path, capsys: Capture) -> None:
    kind, call, words = REFUSED[name]
    before = {path: (here / path).stat().st_mtime_ns for path in listing(here)}
    arguments = call.split()
    if "-o" not in arguments:
        arguments += ["-o", "new"]
    assert restore(runs.get(kind, kind), *arguments) in (1, 2)
    told = capsys.readouterr().err
    assert words in told
    assert "sfumato restore: " in told
    assert "Traceback" not in told
    assert {path: (here / path).stat().st_mtime_ns for path in listing(here)} == before


def test_what_is_there_is_replaced_by_force(runs: dict[str, Path], here: Path) -> None:
    old = (here / "half.png").read_bytes()
    assert restore(runs["rgb"], *HERE.split(), "-o", "half.png", "--force") == 0
    assert (here / "half.png").read_bytes() != old
    assert restore(runs["rgb"], *HERE.split(), "-o", "full", "--force") == 0
    assert listing(here / "full") == ["a.png", "restored.html", "there.png"]


def test_without_a_name_a_new_folder_of_the_run(runs: dict[str, Path], here: Path) -> None:
    for name in ("a", "a-2"):
        assert restore(runs["rgb"], *HERE.split()) == 0
        assert listing(runs["rgb"] / "restored" / name) == ["a.png", "restored.html"]


def test_help_and_words_that_are_almost_right(
    runs: dict[str, Path], here: Path, capsys: Capture
) -> None:
    def ends(call: Callable[[], Any]) -> Any:
        with pytest.raises(SystemExit) as end:
            call()
        return end.value.code

    assert not ends(lambda: main(["restore", "--help"]))
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("RUN IMAGES...", "Where images are damaged (not black)", "--super-resolve",
                  "moment-matching", "repaint", "Plausible answers for each image"):  # fmt: skip
        assert words in told
    assert ends(lambda: restore(runs["rgb"], *HERE.split(), "--method", "repant")) == 2
    assert "did you mean 'repaint'?" in capsys.readouterr().err
    assert main(["restor"]) == 2
    assert "did you mean 'restore'?" in capsys.readouterr().err
