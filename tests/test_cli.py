"""The command line: help without torch, plain errors, and files where it says they are."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from recipe_helpers import QUIET, array_file, in_memory, open_run, pixels, small
from sfumato.cli import VERBS, main
from sfumato.files import usable
from sfumato.recipes.run import Run
from sfumato.recipes.run_config import DataConfig, RunConfig
from sfumato.training.history import checkpoints

SOURCE = str(Path(sfumato.__file__).parents[1])
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return array_file(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    for _ in open_run(folder, data).steps():
        pass
    return folder


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("ladder") / "run"
    for _ in open_run(folder, data, small("ddpm-tiny")).steps():
        pass
    return folder


@pytest.fixture(scope="module")
def by_class(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes") / "run"
    images = in_memory(classes=3)
    images.classes = ("Ankle boot", "Bag", "Shirt")
    config = RunConfig(small(), DataConfig(classes=True), QUIET)
    for _ in Run.open(config, folder, images=images).steps():
        pass
    return folder


def call(*arguments: object) -> int:
    """Run the command line in this process; the exit status."""
    try:
        return main([str(item) for item in arguments])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1


def refused(capsys: Capture, status: int, *arguments: object) -> str:
    """Return what a refused command says: on stderr, plainly, with this exit status."""
    got = call(*arguments)
    captured = capsys.readouterr()
    assert got == status, captured
    assert captured.err.strip()
    assert "Traceback" not in captured.err
    return re.sub(r"\s+", " ", captured.err)


def test_without_a_verb_the_overview_lists_all(capsys: Capture) -> None:
    assert call() == 2
    bare = capsys.readouterr().out
    assert call("--help") == 0
    assert capsys.readouterr().out == bare
    assert all(verb in bare for verb in VERBS)
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("sfumato ")


def test_an_unknown_verb_suggests_the_nearest(capsys: Capture) -> None:
    assert "unknown verb 'smaple'; did you mean 'sample'?" in refused(capsys, 2, "smaple")


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        (["--help"], list(VERBS)),
        (["train"], ["edm", "ncsn", "--resume"]),
        (["train", "--help"], ["edm", "ncsn", "--resume"]),
        (
            ["train", "edm-tiny", "--help"],
            ["--data", "--network.width", "--optimizer.learning-rate", "--minutes", "--batch"],
        ),
        (["train", "--resume", "x", "--help"], ["--images", "--minutes"]),
        (["sample", "--help"], ["-n", "--class", "--solver", "--eta", "--churn", "--seed"]),
        (["info", "--help"], ["PATH"]),
        (["demo", "--help"], ["--minutes", "--samples", "--out"]),
    ],
)
def test_help_lists_the_options(capsys: Capture, arguments: list[str], listed: list[str]) -> None:
    status = call(*arguments)
    text = capsys.readouterr().out
    assert status == (2 if arguments == ["train"] else 0)
    assert all(item in text for item in listed)


def test_a_word_that_is_no_choice_suggests_the_nearest(capsys: Capture) -> None:
    told = refused(capsys, 2, "sample", "x", "--solver", "huen")
    assert told.rstrip().endswith("unknown --solver 'huen'; did you mean 'heun'?")
    told = refused(capsys, 2, "train", "edm-tiny", "--data", "x", "--sampler.grid=karas")
    assert told.rstrip().endswith("unknown --sampler.grid 'karas'; did you mean 'karras'?")
    assert "did you mean" not in refused(capsys, 2, "sample", "x", "--solver", "qqq")
    # The overview is long: what was wrong stands behind it.
    assert refused(capsys, 2, "trian").rstrip().endswith("did you mean 'train'?")


def test_sample_refuses_before_it_says_that_it_samples(capsys: Capture, run: Path) -> None:
    assert main(["sample", str(run), "-n", "2", "--class", "shirt"]) != 0
    assert "sampling" not in capsys.readouterr().out


def test_sample_says_that_few_images_are_padded(capsys: Capture, tmp_path: Path, run: Path) -> None:
    few = ["sample", str(run), "-n", "2", "--steps", "2"]
    assert main([*few, "--batch", "3", "--out", str(tmp_path / "a")]) == 0
    assert "one batch of 3" in capsys.readouterr().out
    assert main([*few, "--batch", "2", "--out", str(tmp_path / "b")]) == 0
    assert "padded" not in capsys.readouterr().out
    # What was drawn can be measured or trained on as it is, sheets left aside.
    assert len(sfumato.open_images(tmp_path / "a")) == 2


def test_copies_of_a_verb_are_refused(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "run"
    assert main(["restore", str(out), str(data)]) == 2
    assert "only train, sample, evaluate, likelihood share work" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["train"]) == 2
    assert "usage" in capsys.readouterr().out


PROBE = """
import sys
from sfumato.cli import main
for arguments in {commands}:
    try:
        main(arguments)
    except SystemExit:
        pass
    heavy = [name for name in ("torch", "numpy", "PIL", "scipy") if name in sys.modules]
    assert not heavy, (arguments, heavy)
"""


def test_help_and_usage_errors_do_not_import_torch() -> None:
    commands = [
        [],
        ["--help"],
        ["--version"],
        ["nonsense"],
        ["train"],
        ["train", "edm-tiny", "--help"],
        ["train", "--resume", "x", "--help"],
        ["train", "nonsense"],
        ["train", "edm-tiny", "--nonsense"],
        ["sample", "--help"],
        ["info", "--help"],
        ["demo", "--help"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(commands=commands)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["sample", "x", "--sovler", "heun"], "--solver"),
        (["train", "edm-tiny", "--optimizer.learning-rat", "1"], "--optimizer.learning-rate"),
        (["demo", "--minuts", "1"], "--minutes"),
    ],
)
def test_an_unknown_option_suggests_the_nearest(
    capsys: Capture, arguments: list[str], near: str
) -> None:
    assert near in refused(capsys, 2, *arguments)


def test_wrong_values_of_options_are_refused(capsys: Capture) -> None:
    assert "--steps" in refused(capsys, 2, "sample", "x", "--steps", "many")
    assert "heun" in refused(capsys, 2, "sample", "x", "--solver", "hoin")
    message = refused(capsys, 2, "train", "edm-tiny", "--data", "x", "--augment", "2")
    assert "augment is a probability" in message


def test_train_says_what_is_missing(capsys: Capture, tmp_path: Path) -> None:
    assert "say what to train on: --data" in refused(capsys, 2, "train", "edm-tiny")
    assert "name a recipe first" in refused(capsys, 2, "train", "--data", tmp_path)
    assert "did you mean 'edm-tiny'" in refused(capsys, 2, "train", "emd-tiny", "--data", "x")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--minutes", -1], "minutes must be 0 or more, not -1"),
        (["--keep", 0], "keep must be 1 or more, not 0"),
        (["--threads", -2], "threads must be 0 or more"),
        (["--device", "meta"], "device 'meta' is not supported"),
        (["--seed", -1], "seed must be 0 or more"),
        (["--sampler.steps", 0], "must be at least 1"),
        (["--network.width", 7], "multiple of 4, got 7"),
        (["--process.kind", "vp"], "predicts edm belongs to process kind edm"),
    ],
)
def test_train_refuses_what_cannot_be(
    capsys: Capture, tmp_path: Path, data: Path, options: list[object], reason: str
) -> None:
    out = tmp_path / "out"
    arguments = ["--data", data, "--layout", "NHWC", "--out", out, *options]
    assert reason in refused(capsys, 2, "train", "edm-tiny", *arguments)
    assert not out.exists()


def test_train_refuses_classes_and_test_images_that_are_not_there(
    capsys: Capture, tmp_path: Path, data: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["--data", data, "--layout", "NHWC", "--out", out]
    assert "label" in refused(capsys, 1, "train", "edm-tiny", *arguments, "--classes")
    message = refused(capsys, 1, "train", "edm-tiny", *arguments, "--test", tmp_path / "none")
    assert "no such data" in message
    assert not out.exists()


def test_data_that_do_not_exist_are_refused(capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "run"
    message = refused(capsys, 1, "train", "edm-tiny", "--data", tmp_path / "none", "--out", out)
    assert "no such data" in message
    assert not out.exists()
    (tmp_path / "empty").mkdir()
    refused(capsys, 1, "train", "edm-tiny", "--data", tmp_path / "empty", "--out", out)
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused(
    capsys: Capture, tmp_path: Path, data: Path, run: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    options = ["--data", data, "--layout", "NHWC"]
    for out in (file, file / "run"):
        for verb in (["train", "edm-tiny", *options], ["sample", run, "-n", 1]):
            assert call(*verb, "--out", out) == 2
            captured = capsys.readouterr()
            assert (
                captured.err == f"sfumato {verb[0]}: {file} is a file, where --out needs a folder\n"
            )
            # Nothing was opened, measured or drawn before.
            assert captured.out in ("", "recipe edm-tiny\n")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="root may write anywhere else")
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(
    capsys: Capture, data: Path, run: Path
) -> None:
    train = ["train", "edm-tiny", "--data", data, "--layout", "NHWC"]
    for verb in (train, ["sample", run, "-n", 1], ["invert", run, data]):
        assert call(*verb, "--out", "/proc/x") == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"sfumato {verb[0]}: /proc/x cannot be written: ")
        assert captured.err.count("\n") == 1
        assert captured.out in ("", "recipe edm-tiny\n")


def test_asking_whether_a_folder_is_usable_leaves_nothing_there(tmp_path: Path) -> None:
    assert usable(tmp_path / "new" / "er") == tmp_path / "new" / "er"
    assert usable(tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_the_file_and_what_to_do(
    capsys: Capture, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    message = refused(capsys, 1, "sample", run, "-n", 1, "--out", tmp_path / "new")
    assert f"{tmp_path}/new/" in message
    assert ".tmp" not in message
    assert "No space left on device; free some space, or choose another --out" in message


def test_commands_to_go_on_with_can_be_pasted(capsys: Capture, tmp_path: Path, data: Path) -> None:
    out = tmp_path / "my shards"
    assert call("data", "pack", data, "--layout", "NHWC", "-o", out) == 0
    (line,) = (s for s in capsys.readouterr().out.splitlines() if s.startswith("to train: "))
    assert shlex.split(line)[-2:] == ["--data", str(out)]


def test_sizes_and_ranges_that_nothing_has_are_refused(capsys: Capture, data: Path) -> None:
    call = ("train", "edm-tiny", "--data", data, "--layout", "NHWC")
    for size in ((0, 32), (32, -32)):
        message = refused(capsys, 1, *call, "--size", *size)
        assert "--size HEIGHT WIDTH" in message
        assert f"got {size[0]} {size[1]}" in message
    for span in ((10000, 0), (0, 0), (0, "inf")):
        message = refused(capsys, 1, *call, "--value-range", *span)
        assert "--value-range LOW HIGH" in message
        assert "LOW below HIGH" in message


SMALL = [
    *("--network.width", "8", "--network.multipliers", "1", "2", "--network.attention"),
    *("--batch", "4", "--images", "8", "--precision", "float32", "--threads", "1"),
    *("--sampler.steps", "2", "--sampler.batch", "36", "--sample-every", "100"),
    *("--layout", "NHWC", "--no-report", "--no-tensorboard"),
]


def test_train_writes_a_run_and_sample_draws_from_it(
    capsys: Capture, tmp_path: Path, data: Path
) -> None:
    out = tmp_path / "run"
    assert call("train", "edm-tiny", "--data", data, *SMALL, "--out", out) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"run: {out}"
    assert "network.width = 8" in printed
    assert f"sfumato sample {out}" in printed
    recipe = RunConfig.read(out / "config.toml").recipe
    assert (recipe.network.width, recipe.batch, recipe.images) == (8, 4, 8)
    assert call("sample", out, "-n", 2) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("images: "))
    assert folder.parent == out / "samples"
    assert len(list(folder.glob("*.png"))) == 3
    # A second run of the same name is refused, and the first is as it was.
    assert "already holds a run" in refused(
        capsys, 2, "train", "edm-tiny", "--data", data, *SMALL, "--out", out
    )
    # Asked to go on it has nothing to do, which is no failure; asked for less it is.
    capsys.readouterr()
    assert call("train", "--resume", out) == 0
    assert "is finished" in capsys.readouterr().out
    told = "has already seen 8 images, more than --images 4: to train on, give a larger one"
    assert told in refused(capsys, 2, "train", "--resume", out, "--images", 4)
    # The last batch went beyond 5 images, which is where a run of so many ends.
    assert "is finished (8 images)" in refused(capsys, 2, "train", "--resume", out, "--images", 5)
    assert call("train", "--resume", out, "--images", 16) == 0
    assert checkpoints(out)[-1].name == "00000004"


def test_the_last_batch_may_go_beyond_the_images_asked_for(
    capsys: Capture, tmp_path: Path, data: Path
) -> None:
    small = [*SMALL, "--images", 6, "--out", tmp_path / "run"]
    assert call("train", "edm-tiny", "--data", data, *small) == 0
    told = capsys.readouterr()
    assert "trained on 8 images" in told.out
    assert "8/8 images" in told.err


def test_a_run_without_out_finds_a_free_folder(
    capsys: Capture, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/edm-tiny", "runs/edm-tiny-2"):
        assert call("train", "edm-tiny", "--data", data, *SMALL) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"run: {folder}"


def test_resume_takes_no_recipe_and_needs_a_run(capsys: Capture, tmp_path: Path, run: Path) -> None:
    assert "leave out the recipe" in refused(capsys, 2, "train", "edm-tiny", "--resume", run)
    assert "is not a run" in refused(capsys, 1, "train", "--resume", tmp_path)


@pytest.mark.parametrize("given", [["--batch", 64], ["--data=x"], ["--imges", 8]])
def test_resume_tells_which_options_it_takes(
    capsys: Capture, run: Path, given: list[object]
) -> None:
    message = refused(capsys, 2, "train", "--resume", run, "--images", 8, *given)
    name = str(given[0]).partition("=")[0]
    assert f"{name}: with --resume the recipe, the data and the rest are the run's own" in message
    assert message.rstrip().endswith("--images, --minutes, --threads, --compile, --fsdp")
    assert "Unrecognized" not in message


def test_a_config_that_cannot_be_read_is_named(capsys: Capture, tmp_path: Path, run: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = copy / "config.toml"
    text = config.read_text()
    config.write_text(text.replace("learning_rate", "learningrate"))
    assert "learningrate" in refused(capsys, 2, "train", "--resume", copy)
    config.write_text(text[: len(text) // 2] + "=")
    assert "not valid TOML" in refused(capsys, 2, "train", "--resume", copy)


def test_sample_writes_images_a_grid_and_how_to_draw_them_again(
    capsys: Capture, tmp_path: Path, run: Path
) -> None:
    out = tmp_path / "new"
    arguments = ["sample", run, "-n", 5, "--seed", 3, "--steps", 2, "--solver", "euler"]
    assert call(*arguments, "--out", out) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"images: {out}"
    files = sorted(path.name for path in out.glob("*.png") if path.name != "grid.png")
    assert [int(re.sub(r"\D", "", name)) for name in files] == [3, 4, 5, 6, 7]
    expected = sfumato.load(run).sample(
        5, seed=3, sampler=replace(small().sampler, steps=2, solver="euler")
    )
    drawn = np.stack([np.asarray(Image.open(out / name)) for name in files])
    assert (drawn == expected[:, 0]).all()
    assert Image.open(out / "grid.png").size[0] > 8
    record = tomllib.loads((out / "sample.toml").read_text())
    assert (record["images"], record["seed"], record["class"]) == (5, 3, "")
    assert (record["sampler"]["solver"], record["sampler"]["steps"]) == ("euler", 2)
    assert record["checkpoint"] == str(checkpoints(run)[-1])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-n", 0], "at least 1, not 0"),
        (["-n", -3], "at least 1, not -3"),
        (["--eta", 0.5], "eta belongs to the ddim solver, not to heun"),
        (["--solver", "ddim", "--eta", 1.5], "eta lies in [0, 1], not 1.5"),
        (["--solver", "ddim", "--eta", -0.5], "eta lies in [0, 1], not -0.5"),
        (["--solver", "ddim", "--churn", 5], "dpm++3s, not ddim"),
        (["--steps", 0], "must be at least 1"),
        (["--batch", 0], "must be at least 1"),
        (["--alpha", 2], "alpha lies in (0, 1], not 2.0"),
        (["--rho", 0], "rho must be above 0"),
        (["--grid", "uniform"], "this model has none"),
        (["--sigma-max", 1000], "0.002 to 80"),
        (["--sigma-min", 3, "--sigma-max", 2], "sigma_min < sigma_max"),
        (["--class", "shirt"], "trained without classes"),
        (["--threads", -1], "threads must be 0"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_sample_refuses_what_cannot_be(
    capsys: Capture, tmp_path: Path, run: Path, options: list[object], reason: str
) -> None:
    out = tmp_path / "out"
    assert reason in refused(capsys, 2, "sample", run, "-n", 1, "--out", out, *options)
    # Nothing was begun.
    assert not out.exists()


def test_sample_refuses_what_a_ladder_cannot(capsys: Capture, tmp_path: Path, ladder: Path) -> None:
    out = ["-n", 1, "--out", tmp_path / "out"]
    message = refused(capsys, 2, "sample", ladder, *out, "--steps", 1001)
    assert "1 to 1000 steps, not 1001" in message
    message = refused(capsys, 2, "sample", ladder, *out, "--solver", "heun", "--alpha", 0.5)
    assert "alpha 0.5" in message
    assert call("sample", ladder, *out, "--solver", "ddim", "--steps", 2) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(capsys: Capture, run: Path) -> None:
    message = refused(capsys, 2, "sample", run, "-n", 1, "--device", "cuda")
    assert "no CUDA device is available here: use --device cpu" in message


def test_another_solver_leaves_the_options_of_the_own_one(
    capsys: Capture, tmp_path: Path, data: Path
) -> None:
    folder = tmp_path / "run"
    sampler = replace(small().sampler, solver="ddim", eta=0.5)
    for _ in open_run(folder, data, small(sampler=sampler)).steps():
        pass
    assert call("sample", folder, "-n", 1, "--solver", "heun", "--out", tmp_path / "heun") == 0
    assert call("sample", folder, "-n", 1, "--clip", "--out", tmp_path / "ddim") == 0
    record = tomllib.loads((tmp_path / "ddim/sample.toml").read_text())["sampler"]
    assert (record["eta"], record["clip"]) == (0.5, True)


def test_a_choice_that_the_run_makes_is_made_by_a_flag_too(
    tmp_path: Path, data: Path, capsys: Capture
) -> None:
    for own in (True, False):
        folder = tmp_path / f"{own}"
        chosen = small(sampler=replace(small().sampler, clip=own))
        list(open_run(folder, data, chosen).steps())
        for words, clip in {
            (): own, ("--clip",): True, ("--clip", "True"): True, ("--no-clip",): False,
            ("--clip", "False"): False, ("--clip=False",): False,
        }.items():  # fmt: skip
            out = tmp_path / "-".join(["drawn", f"{own}", *words])
            assert call("sample", folder, *words, "-n", 1, "--out", out) == 0
            assert tomllib.loads((out / "sample.toml").read_text())["sampler"]["clip"] is clip
    assert call("sample", folder, "-n", 1, "--clip", "Yes") == 2
    assert "Unrecognized options: Yes" in capsys.readouterr().err


def test_info_on_a_recipe_of_the_users_own(capsys: Capture, tmp_path: Path, data: Path) -> None:
    for _ in open_run(tmp_path, data, replace(small(), name="mine")).steps():
        pass
    assert call("info", tmp_path) == 0
    assert re.search(r"recipe +mine\n", capsys.readouterr().out)


def test_sample_by_class(capsys: Capture, tmp_path: Path, by_class: Path) -> None:
    out = tmp_path / "out"
    assert "did you mean 'Shirt'?" in refused(
        capsys, 2, "sample", by_class, "-n", 1, "--class", "shirrt", "--out", out
    )
    assert not out.exists()
    assert call("sample", by_class, "-n", 1, "--class", "ankle boot", "--out", out) == 0
    assert tomllib.loads((out / "sample.toml").read_text())["class"] == "Ankle boot"


def test_a_folder_that_is_no_run_is_refused(capsys: Capture, tmp_path: Path) -> None:
    assert "does not exist" in refused(capsys, 1, "sample", tmp_path / "none")
    assert f"{tmp_path} is no training run" in refused(capsys, 1, "sample", tmp_path)
    (tmp_path / "config.toml").write_text("")
    assert "no checkpoint was saved yet" in refused(capsys, 1, "sample", tmp_path)
    assert "no such data" in refused(capsys, 1, "info", tmp_path / "none")


def test_a_damaged_checkpoint_is_named(capsys: Capture, tmp_path: Path, run: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    *_, newest = checkpoints(copy)
    file = newest / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert str(file) in refused(capsys, 1, "sample", newest, "-n", 1)
    # The run as a whole still works, from the checkpoint before, and says so.
    for verb in (["sample", copy, "-n", 1], ["info", copy]):
        assert call(*verb) == 0
        printed = capsys.readouterr().out
        assert f"note: skipped damaged checkpoint: {file}" in printed
        assert "00000006" in printed
    (newest / "checkpoint.toml").write_text("format = 99\n")
    assert "format 99" in refused(capsys, 1, "sample", newest, "-n", 1)
    (newest / "checkpoint.toml").write_text("format = ")
    assert "checkpoint.toml" in refused(capsys, 1, "info", newest)


def test_info_tells_what_a_path_is(
    capsys: Capture, run: Path, by_class: Path, data: Path, tmp_path: Path
) -> None:
    assert call("info", run) == 0
    about = capsys.readouterr().out
    assert re.search(r"recipe +edm-tiny\n", about)
    assert "network.width = 8" in about
    assert re.search(r"images +1 x 8 x 8 uint8\n", about)
    assert re.search(r"classes +none\n", about)
    assert "32 of 32 images (12 different ones)" in about
    assert "00000003, 00000006, 00000008" in about
    assert call("info", checkpoints(run)[0]) == 0
    assert "12 of 32 images" in capsys.readouterr().out
    assert call("info", by_class) == 0
    assert "Ankle boot, Bag, Shirt" in capsys.readouterr().out
    assert call("info", data) == 0
    assert "12 images, 1 x 8 x 8 uint8" in capsys.readouterr().out
    for number, image in enumerate(pixels((3, 8, 8), 3)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    assert call("info", tmp_path) == 0
    assert "3 images, 3 x 8 x 8 uint8" in capsys.readouterr().out


def test_info_on_half_a_run(capsys: Capture, tmp_path: Path, run: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints")
    assert "no checkpoint was saved yet" in refused(capsys, 1, "info", copy)


def test_the_demo_refuses_nothing_to_do(capsys: Capture) -> None:
    assert "--samples of at least 2" in refused(capsys, 2, "demo", "--samples", 1)
    assert "--minutes above 0" in refused(capsys, 2, "demo", "--minutes", 0)


def test_the_report_is_written_at_the_end(capsys: Capture, tmp_path: Path, data: Path) -> None:
    out = tmp_path / "run"
    options = [item for item in SMALL if item != "--no-report"]
    arguments = ["--data", data, *options, "--report-samples", 4, "--out", out]
    assert call("train", "edm-tiny", *arguments) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "edm-tiny" in page
    # Self-contained: nothing is fetched.
    assert not re.search(r"(src|href)=[\"']https?://", page)


@pytest.mark.parametrize(
    ("verb", "extra"),
    [
        ("sample", ["-n", 2]),
        ("compare", ["-n", 2]),
        ("evaluate", ["-n", 2]),
        ("tune", ["-n", 2, "--nfe", 4]),
        ("likelihood", []),
        ("interpolate", ["seed:1", "seed:2"]),
        ("restore", ["none.png"]),
    ],
)
def test_seeds_beyond_what_noise_tells_apart_are_refused(
    capsys: Capture, tmp_path: Path, run: Path, verb: str, extra: list[object]
) -> None:
    for seed, reason in {-1: "must be 0 or more, not -1", 2**64: "must end below 2^63"}.items():
        message = refused(capsys, 2, verb, run, *extra, "--seed", seed, "--out", tmp_path / "out")
        assert f"--seed {reason}" in message
    assert not (tmp_path / "out").exists()


def test_the_last_seed_counts_too(capsys: Capture, tmp_path: Path, run: Path) -> None:
    last = 2**63 - 1
    few = ["--steps", 1, "--batch", 1]
    assert call("sample", run, "-n", 1, "--seed", last, *few, "-o", tmp_path / "last") == 0
    assert f"the last of 2 is {last + 1}" in refused(
        capsys, 2, "sample", run, "-n", 2, "--seed", last, "-o", tmp_path / "beyond"
    )
    assert "seed: must end below" in refused(
        capsys, 2, "interpolate", run, f"seed:{2**64}", "seed:1", "-o", tmp_path / "beyond"
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--size", 32], "sfumato train edm-tiny: --size takes 2 values, got 1"),
        (["--size=32"], "sfumato train edm-tiny: --size takes 2 values, got 1"),
        (["--size", "--classes"], "sfumato train edm-tiny: --size takes 2 values, got 0"),
        (["--value-range", 0, "--classes"], "--value-range takes 2 values, got 1"),
    ],
)
def test_too_few_values_of_an_option_are_told_plainly(
    capsys: Capture, given: list[object], told: str
) -> None:
    assert refused(capsys, 2, "train", "edm-tiny", "--data", "x", *given).rstrip().endswith(told)


def test_values_in_their_number_are_not_complained_of(capsys: Capture) -> None:
    given = ["--size", 32, 32, "--value-range", -1, 1, "--stepz", 2]
    assert "takes 2" not in refused(capsys, 2, "train", "edm-tiny", "--data", "x", *given)
