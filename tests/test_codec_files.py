"""Compressed files: round trips by the command line, what is refused, and damage of every kind."""

from __future__ import annotations

import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipe_helpers import open_run, pixels, small
from sfumato.cli import main
from sfumato.codec import Container, Header, Lossless
from sfumato.codec.container import MAGIC
from sfumato.codec.stack import Stack
from sfumato.errors import CodecError, ConfigError
from sfumato.recipes.compression import (
    Effort,
    Packed,
    load_profile,
    pack,
    prepare,
    previews,
    unpack,
)
from sfumato.recipes.compression import packing as packing_module
from sfumato.recipes.inputs import Opening
from sfumato.recipes.loading import load
from sfumato.recipes.model import Model

Capture = pytest.CaptureFixture[str]
KINDS = {
    "learned": ("iddpm-tiny", (1, 8, 8), "uint8"),
    "edm": ("edm-tiny", (3, 8, 12), "uint8"),
    "deep": ("iddpm-tiny", (2, 8, 8), "uint16"),
    "ve": ("ve-tiny", (1, 8, 8), "uint8"),
}


def trained(folder: Path, kind: str) -> Path:
    name, shape, dtype = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", pixels(shape, dtype=dtype))
    recipe = small(name, steps=4)
    if recipe.process.kind == "ladder":
        recipe = replace(recipe, process=replace(recipe.process, steps=40, betas="cosine"))
        recipe = replace(recipe, sampler=replace(recipe.sampler, steps=3))
    made = open_run(folder / "run", folder / "images.npy", recipe)
    for _ in made.steps():
        pass
    return folder / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: trained(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def raw(kind: str, count: int = 7) -> np.ndarray:
    _, shape, dtype = KINDS[kind]
    return np.ascontiguousarray(pixels(shape, count, dtype, seed=3).transpose(0, 3, 1, 2))


def packing(model: Model, images: np.ndarray, **how: Any) -> Packed:
    """Pack with the model's profile, measured where that was not done yet."""
    return pack(model, load_profile(model) or prepare(model)[0], images, **how)


def bits_back(model: Model, images: np.ndarray, effort: Effort) -> Packed:
    """By bits-back coding, though with models that know little zlib's files are smaller."""
    profile = load_profile(model) or prepare(model)[0]
    flat, common = packing_module._common(model, images)
    return packing_module._bits_back(model, profile, flat, images, common, effort, lambda n: None)


def unpacking(model: Model, container: Container) -> np.ndarray:
    profile = load_profile(model)
    assert profile is not None
    return unpack(model, profile, container)


@pytest.fixture(scope="module")
def packed(runs: dict[str, Path]) -> bytes:
    return bits_back(load(runs["learned"]), raw("learned"), Effort(12, 2)).data


@pytest.fixture(scope="module")
def model(runs: dict[str, Path]) -> Model:
    return load(runs["learned"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streams", [1, 3])
def test_every_kind_of_model_and_image_comes_back(
    runs: dict[str, Path], kind: str, streams: int
) -> None:
    model, images = load(runs[kind]), raw(kind)
    made = bits_back(model, images, Effort(10, streams))
    assert made.bits_per_dim == pytest.approx(8 * len(made.data) / images.size)
    again = load(runs[kind])
    back = unpacking(again, Container.from_bytes(made.data))
    assert back.dtype == images.dtype
    assert (back == images).all()


def test_the_decoder_computes_on_as_many_threads_as_the_encoder(model: Model) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        data = bits_back(model, raw("learned"), Effort(8, 3)).data
        torch.set_num_threads(2)  # on which the last digits may be others
        assert (unpacking(model, Container.from_bytes(data)) == raw("learned")).all()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("unlike", [[4], [0, 1, 6], list(range(7))])
def test_images_out_of_reach_are_kept_as_they_are(
    model: Model, monkeypatch: pytest.MonkeyPatch, unlike: list[int]
) -> None:
    images, real = raw("learned"), Lossless._push_row

    def refuse(self: Lossless, values: np.ndarray, stacks: list[Stack]) -> int | None:
        failed = real(self, values, stacks)  # which changes the stacks
        flat = images.reshape(7, -1)
        for place, value in enumerate(values):
            if any((value == flat[i]).all() for i in unlike):
                return place
        return failed

    monkeypatch.setattr(Lossless, "_push_row", refuse)
    made = bits_back(model, images, Effort(6, 3))
    assert len(made.container.header.raw) == len(unlike)
    container = Container.from_bytes(made.data)
    assert container.header.raw == tuple(unlike)
    assert (unpacking(model, container) == images).all()


def test_by_the_command_line(tmp_path: Path, runs: dict[str, Path], capsys: Capture) -> None:
    source, out = tmp_path / "seven.npy", tmp_path / "seven.sfu"
    np.save(source, pixels((1, 8, 8), 7, seed=3))
    words = ["compress", str(runs["learned"]), str(source), "-o", str(out), "--levels", "12"]
    words += ["--threads", "1", "--streams", "1"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    size = out.stat().st_size
    assert f"7 images in {size:,} bytes, {size / 7:.0f} each: {8 * size / 448:.3f} bits" in printed
    assert main(["info", str(out)]) == 0
    about = capsys.readouterr().out
    assert "7 of 1 x 8 x 8 uint8" in about
    header = Container.from_bytes(out.read_bytes()).header
    assert f"{header.levels} levels, 1 at once, 1 threads" in about
    assert f"{size} bytes, {header.kind}" in about
    undo = ["decompress", str(runs["learned"]), str(out), "-o"]
    assert main([*undo, str(tmp_path / "back")]) == 0
    from PIL import Image

    files = sorted((tmp_path / "back").iterdir())
    back = np.stack([np.asarray(Image.open(file)) for file in files])
    assert (back == np.load(source)[..., 0]).all()
    assert main([*undo, str(tmp_path / "back.npy")]) == 0
    assert (np.load(tmp_path / "back.npy") == np.load(source)).all()
    capsys.readouterr()
    assert main(words) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert main([*words, "--force", "-n", "1"]) == 0
    assert main([*undo, str(tmp_path / "back.npy")]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert main([*undo, str(tmp_path / "one.png")]) == 0
    assert (np.asarray(Image.open(tmp_path / "one.png")) == np.load(source)[0, ..., 0]).all()


def test_what_cannot_be_compressed_is_refused(
    tmp_path: Path, runs: dict[str, Path], capsys: Capture
) -> None:
    run = str(runs["learned"])
    cases = {
        "wide": (pixels((1, 8, 9)), "--size 8 8"),
        "colour": (pixels((3, 8, 8)), "--channels 1"),
        "deep": (pixels(dtype="uint16"), "bit depths are not converted"),
    }
    for name, (images, reason) in cases.items():
        np.save(tmp_path / f"{name}.npy", images)
        out = tmp_path / f"{name}.sfu"
        assert main(["compress", run, str(tmp_path / f"{name}.npy"), "-o", str(out)]) == 1
        assert reason in capsys.readouterr().err
        assert not out.exists()
    assert main(["compress", run, "-o", str(tmp_path / "x.sfu")]) == 2
    assert "give images" in capsys.readouterr().err
    np.save(tmp_path / "good.npy", pixels())
    words = ["compress", run, str(tmp_path / "good.npy"), "-o", str(tmp_path / "x.sfu")]
    assert main([*words, "--levels", "1"]) == 2
    assert "--levels must be at least 2" in capsys.readouterr().err
    model = load(run)
    with pytest.raises(ConfigError, match="floating-point"):
        prepare(replace(model, format=replace(model.format, dtype="float32")))
    with pytest.raises(ConfigError, match="trained with classes"):
        load_profile(replace(model, classes=("a", "b")))
    with pytest.raises(ValueError, match=r"expected one or more raw 1 x 8 x 8"):
        packing(model, raw("edm"))


def test_another_models_file_is_refused(
    tmp_path: Path, runs: dict[str, Path], packed: bytes, capsys: Capture
) -> None:
    file = tmp_path / "a.sfu"
    file.write_bytes(packed)
    for other in ("edm", "deep", "ve"):
        prepare(load(runs[other]))
        assert main(["decompress", str(runs[other]), str(file)]) == 1
        assert "made with another model" in capsys.readouterr().err
        assert not (tmp_path / "a").exists()
    further = Path(shutil.copytree(runs["learned"], tmp_path / "run"))
    assert main(["decompress", str(further), str(file), "-o", str(tmp_path / "b")]) == 0


def test_a_machine_of_other_last_digits_is_refused(
    model: Model, packed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.codec.lattice import Answer, Asker

    real = Asker.__call__

    def otherwise(self: Asker, x: np.ndarray, sigma: float) -> Answer:
        answer = real(self, x, sigma)
        return Answer(answer.mean * (1 + 1e-7), answer.var)

    monkeypatch.setattr(Asker, "__call__", otherwise)
    with pytest.raises(CodecError, match="other last digits"):
        unpacking(model, Container.from_bytes(packed))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"PNG and so on, no such file at all", "does not begin like one"),
        (MAGIC, "checksum"),
        (MAGIC[:2], "checksum"),
        (MAGIC + b"\x02" + bytes(40), "of format 2, and this sfumato reads 1: update"),
        (MAGIC + b"\x01" + bytes(40), "checksum"),
    ],
)
def test_what_is_no_such_file_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        Container.from_bytes(data)


def mutated(data: bytes, generator: np.random.Generator) -> bytes:
    """Flip bits, cut, repeat, or insert."""
    out = bytearray(data)
    place = int(generator.integers(len(out)))
    match int(generator.integers(5)):
        case 0:
            out[place] ^= 1 << int(generator.integers(8))
        case 1:
            return bytes(out[:place])
        case 2:
            out[place:place] = out[: int(generator.integers(1, 9))]
        case 3:
            out[place] = int(generator.integers(256))
        case _:
            del out[place : place + int(generator.integers(1, 9))]
    return bytes(out)


def fuzz(model: Model, data: bytes, rounds: int, seed: int) -> None:
    """Damage a file: with its checksum as it was, and with one that fits the damage."""
    generator = np.random.default_rng(seed)
    original = unpacking(model, Container.from_bytes(data))
    for _ in range(rounds):
        damaged = mutated(data, generator)
        if damaged != data:
            with pytest.raises(CodecError):
                Container.from_bytes(damaged)
        checked(model, mutated(data[:-4], generator), original)


def checked(model: Model, body: bytes, original: np.ndarray) -> None:
    """A file with a checksum that fits: refused, or what it was."""
    try:
        container = Container.from_bytes(body + zlib.crc32(body).to_bytes(4, "little"))
        images = unpacking(model, container)
    except CodecError:
        return
    assert (images == original).all()  # what was hit did not matter


@pytest.fixture(scope="module")
def packed_kinds(model: Model, packed: bytes) -> dict[str, bytes]:
    profile = load_profile(model)
    assert profile is not None
    made = {"bits-back": packed}
    made["lossy"] = packing(
        model, raw("learned"), quality=len(profile.steps) // 2, effort=Effort(search=14)
    ).data
    # Images too unlike one another for a small model: staged and plain are made by hand.
    flat, common = packing_module._common(model, raw("learned"))
    made["staged"] = packing_module._staged(
        model,
        profile,
        flat,
        raw("learned"),
        replace(common, kind="staged", search=14),
        lambda n: None,
    ).data
    made["plain"] = packing_module._plain(model, profile, raw("learned"), common).data
    return made


@pytest.mark.parametrize("kind", ["bits-back", "staged", "lossy", "plain"])
def test_damaged_files_are_refused(model: Model, packed_kinds: dict[str, bytes], kind: str) -> None:
    data = packed_kinds[kind]
    assert Container.from_bytes(data).header.kind == kind
    fuzz(model, data, 40, seed=0)
    for cut in [0, 1, 4, 5, 6, 15, 19, 23, *range(len(data) - 9, len(data))]:
        with pytest.raises(CodecError):
            Container.from_bytes(data[:cut])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bits-back", "staged", "lossy", "plain"])
def test_damaged_files_are_refused_thousands_of_times(
    model: Model, packed_kinds: dict[str, bytes], kind: str
) -> None:
    fuzz(model, packed_kinds[kind], 2000, seed=1)


@pytest.mark.parametrize("kind", ["bits-back", "staged", "lossy", "plain"])
def test_every_number_of_a_header_may_be_anything(
    model: Model, packed_kinds: dict[str, bytes], kind: str
) -> None:
    container = Container.from_bytes(packed_kinds[kind])
    original = unpacking(model, container)
    for name in ("low", "top", "count", "levels", "batch", "threads", "pixels"):
        for value in (0, 1, 2, 1024, 2**16, 2**24, 2**31):
            try:
                header = replace(container.header, **{name: value})
                other = Container(header, container.sections).to_bytes()
                images = unpacking(model, Container.from_bytes(other))
            except CodecError:
                continue
            assert (images == original).all()


def test_every_kind_comes_back(model: Model, packed_kinds: dict[str, bytes]) -> None:
    for kind in ("bits-back", "staged", "plain"):
        images = unpacking(model, Container.from_bytes(packed_kinds[kind]))
        assert (images == raw("learned")).all()
    lossy = unpacking(model, Container.from_bytes(packed_kinds["lossy"]))
    assert lossy.shape == raw("learned").shape
    assert (lossy != raw("learned")).any()


def test_what_the_model_does_not_know_is_never_larger_than_zlib_makes_it(model: Model) -> None:
    images = np.zeros((3, 1, 8, 8), np.uint8)
    images[:, :, ::2] = 255
    made = packing(model, images)
    assert made.container.header.kind == "plain"
    assert len(made.container.sections[0]) <= len(zlib.compress(images.tobytes(), 9))
    assert (unpacking(model, Container.from_bytes(made.data)) == images).all()


def test_more_levels_are_nearer_and_longer(model: Model) -> None:
    profile = load_profile(model)
    assert profile is not None
    images, most = raw("learned"), len(profile.steps) - 1
    sizes: list[int] = []
    for quality in (1, most // 2, most):
        made = packing(model, images, quality=quality)
        assert made.container.header.levels == quality
        assert (unpacking(model, Container.from_bytes(made.data)) == made.images).all()
        sizes.append(len(made.data))
    assert sizes == sorted(sizes)
    for quality in (0, most + 1):
        with pytest.raises(ConfigError, match=f"goes from 1 to {most}"):
            packing(model, images, quality=quality)


def test_previews_of_whole_files_and_of_their_beginnings(
    model: Model, packed_kinds: dict[str, bytes]
) -> None:
    profile = load_profile(model)
    assert profile is not None
    for kind in ("lossy", "staged"):
        data = packed_kinds[kind]
        whole = list(previews(model, profile, Container.from_bytes(data)))
        levels = Container.from_bytes(data).header.levels
        assert [one.levels for one in whole] == list(range(levels + 1))
        if kind == "lossy":
            final = unpacking(model, Container.from_bytes(data))
            assert (whole[-1].images == final).all()
        for cut in (1, 2, 3, 4, 5, len(data) // 3):
            part = Container.from_bytes(data[:-cut], beginning=True)
            assert not part.whole
            shown = list(previews(model, profile, part))
            assert 1 <= len(shown) <= levels + 1
            for a, b in zip(shown, whole, strict=False):
                assert (a.images == b.images).all()
        if kind == "lossy":  # a third of it is missing; of staged ones that is pixels
            assert len(shown) < levels
    for kind in ("bits-back", "plain"):
        with pytest.raises(CodecError, match="not level by level"):
            list(previews(model, profile, Container.from_bytes(packed_kinds[kind])))
    with pytest.raises(CodecError, match="no use for a part of it"):
        Container.from_bytes(packed_kinds["bits-back"][:-9], beginning=True)


def test_few_bits_by_the_command_line(
    tmp_path: Path, runs: dict[str, Path], capsys: Capture
) -> None:
    source, out = tmp_path / "seven.npy", tmp_path / "seven.sfu"
    np.save(source, pixels((1, 8, 8), 7, seed=3))
    run = str(runs["learned"])
    assert main(["compress", run, "--list"]) == 0
    table = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in table if line.strip()[:1].isdecimal()]
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    words = ["compress", run, str(source), "-o", str(out), "--quality", str(len(rows))]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"by {len(rows)} noise levels" in printed
    assert "RMSE " in printed
    sheet = tmp_path / "progress"
    assert main(["decompress", run, str(out), "--preview", "-o", str(sheet)]) == 0
    assert (sheet / "progress.png").is_file()
    folders = sorted(path.name for path in sheet.iterdir() if path.is_dir())
    assert folders == [f"level-{i:02d}" for i in range(len(rows) + 1)]
    assert len(list((sheet / "level-00").iterdir())) == 7
    whole = out.read_bytes()
    out.write_bytes(whole[: 2 * len(whole) // 3])
    capsys.readouterr()
    assert main(["decompress", run, str(out), "-o", str(tmp_path / "x")]) == 1
    assert "--preview shows what is there" in capsys.readouterr().err
    words2 = ["decompress", run, str(out), "--preview", "-o", str(sheet), "--force"]
    assert main(words2) == 0
    assert "cut short, or damaged" in capsys.readouterr().out
    for more, reason in {
        ("--quality", "0"): "goes from 1 to",
        ("--quality", "3", "--lossless"): "exclude each other",
        ("--quality", "3", "--streams", "2"): "are of lossless files",
        ("--streams", "2000"): "from 0 to 1024",
        ("--prepare", str(source)): "was prepared before",
    }.items():
        assert main(["compress", run, str(source), "-o", str(tmp_path / "y.sfu"), *more]) == 2
        assert reason in capsys.readouterr().err
    assert main([*words2[:3], "--preview", "-o", str(tmp_path / "a.png")]) == 2
    assert "writes a folder" in capsys.readouterr().err
    out.write_bytes(whole)
    for name, reason in {"a.png": "7 images do not fit", "a.jpg": "not as"}.items():
        assert main(["decompress", run, str(out), "-o", str(tmp_path / name)]) == 2
        assert reason in capsys.readouterr().err


def test_a_model_is_prepared_once_and_its_profile_checked(
    tmp_path: Path, runs: dict[str, Path], capsys: Capture
) -> None:
    run = Path(shutil.copytree(runs["edm"], tmp_path / "run"))
    file = max((run / "checkpoints").iterdir()) / "codec.toml"
    file.unlink(missing_ok=True)
    source = tmp_path / "big.npy"
    np.save(source, pixels((3, 10, 14), 9, seed=1))
    words = ["compress", str(run), str(source), "-o", str(tmp_path / "a.sfu")]
    words += ["--size", "8", "12", "--prepare", str(source)]
    assert main(words) == 0
    assert "measured the model" in capsys.readouterr().out
    first = file.read_text()
    assert main([*words, "--force"]) == 0
    assert file.read_text() == first  # the same images give the same numbers
    model = load(run)
    assert load_profile(model) == prepare(model, str(source), Opening((8, 12)))[0]
    for damage in ("steps = [0, 5, 999]", "sigmas = []", "not TOML at all ["):
        name = damage.split(" ")[0]
        lines = [damage if line.startswith(f"{name} = ") else line for line in first.splitlines()]
        text = "\n".join(lines)
        file.write_text(text if text != first.rstrip() else damage)
        with pytest.raises(CodecError, match="cannot be read: it is damaged"):
            load_profile(model)
    file.unlink()
    (tmp_path / "one").mkdir()
    np.save(tmp_path / "one" / "x.npy", pixels((3, 8, 12), 1))
    with pytest.raises(ConfigError, match="on two images at least, not 1"):
        prepare(model, str(tmp_path / "one" / "x.npy"))
    shutil.move(runs["edm"].parent / "images.npy", tmp_path / "moved.npy")
    try:
        with pytest.raises(ConfigError, match="add --prepare IMAGES"):
            prepare(model)
        assert main(["decompress", str(run), str(tmp_path / "a.sfu"), "-o", "z"]) == 1
        assert "has not been prepared" in capsys.readouterr().err
    finally:
        shutil.move(tmp_path / "moved.npy", runs["edm"].parent / "images.npy")


def test_headers_come_back_whole() -> None:
    header = Header(
        "lossy", b"model678", b"prob", 77, (3, 32, 300), "uint16", 5, 4000, 70_000, 64, 22, 16, 2,
        (0, 3, 4, 69_999),
    )  # fmt: skip
    container = Container(header, [b"", b"abc", bytes(9000)])
    assert Container.from_bytes(container.to_bytes()) == container
    with pytest.raises(CodecError, match="makes no sense"):
        replace(header, raw=(3, 3))
    with pytest.raises(CodecError, match="makes no sense"):
        replace(header, count=0)
    with pytest.raises(CodecError, match="makes no sense"):
        replace(header, search=9)


def test_without_the_extra_it_is_named(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from sfumato.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(MissingExtraError, match=r"sfumato\[codec\]"):
        packing(model, raw("learned"))
