"""The dependency contract: who imports whom, which words live where, no hidden randomness."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import sfumato

SOURCE = Path(sfumato.__file__).parent

# A file imports from rows above its own. `errors` is for everybody.
ROWS = [
    {"native"},
    {"files", "gaussian", "noise", "placement", "processes", "randomness", "networks", "speed"},
    {"protocols", "diffusion"},
    {"denoiser", "parameterization", "solvers", "guidance"},
    {"sampling"},
    {"latents", "restoration", "likelihood", "codec", "training", "pretrained", "tuning"},
    {"data", "metrics", "report"},
    {"recipes"},
    {"cli", "studio"},
]
ROW = {name: number for number, names in enumerate(ROWS) for name in names}
WITHIN_A_ROW = {("codec", "likelihood"), ("cli", "studio"), ("guidance", "denoiser")}
# These know arrays and files; of the library only row 1.
ARRAYS_AND_FILES = ROWS[6]
WORDS_OF_THE_LADDER = {"eps", "abar", "alphabar", "beta", "betas", "timestep", "timesteps"}
FREE_OF_THOSE_WORDS = {"solvers", "likelihood", "codec", "restoration"}

FILES = sorted(p for p in SOURCE.rglob("*.py"))


def unit(path: Path) -> str:
    """The top-level part of the library a file belongs to; "" for the package's own __init__."""
    first = path.relative_to(SOURCE).parts[0]
    return "" if first in ("__init__.py", "__main__.py") else first.removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Full dotted names of what is imported (`from a import b`: a.b), relative ones resolved."""
    package = ["sfumato", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def allowed(here: str, there: str) -> bool:
    if there in (here, "errors") or (here, there) in WITHIN_A_ROW:
        return True
    if here in ARRAYS_AND_FILES:
        return there in ROWS[0] | ROWS[1]
    return ROW[there] < ROW[here]


def test_every_part_has_a_row():
    parts = {unit(path) for path in FILES} - {"", "errors"}
    assert parts <= set(ROW), f"give {sorted(parts - set(ROW))} a row in the contract"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_come_from_rows_above(path: Path):
    here = unit(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "sfumato" or not here:
            continue
        assert len(parts) > 1, f"{path}: import the module, not the package `sfumato`"
        there = parts[1]
        if here == "errors":
            pytest.fail(f"errors imports {name}; it must stand alone")
        assert allowed(here, there), f"{here} must not import {there} ({name})"


@pytest.mark.parametrize(
    "path", [p for p in FILES if unit(p) == "networks"], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_networks_import_torch_only(path: Path):
    for name in imports(path):
        top = name.split(".")[0]
        own = name.startswith(("sfumato.networks", "sfumato.native", "sfumato.errors"))
        assert top in sys.stdlib_module_names or top == "torch" or own, name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_torchvision_is_never_needed(path: Path):
    assert not {n.split(".")[0] for n in imports(path)} & {"torchvision", "torchaudio"}


def identifiers(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            of_finfo = isinstance(node.value, ast.Call) and "finfo" in ast.dump(node.value.func)
            if not of_finfo:
                yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.value.lineno
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias):
            yield node.name, node.lineno


def words(identifier: str) -> set[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", identifier).lower()
    parts = re.split(r"[_.\d]+", spaced)
    return {*parts, "".join(parts)} | {a + b for a, b in pairwise(parts)}


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if unit(p) in FREE_OF_THOSE_WORDS],
    ids=lambda p: str(p.relative_to(SOURCE)),
)
def test_solvers_and_their_like_know_only_sigma(path: Path):
    found = [(n, line) for n, line in identifiers(path) if words(n) & WORDS_OF_THE_LADDER]
    assert not found, f"{path.name} speaks of {found}; say it with sigma"


# --- randomness --------------------------------------------------------------------------------

# Functions that read or set a global generator unless they are handed one.
DRAWS = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal",
    "normal_", "uniform_", "bernoulli", "bernoulli_", "random_", "multinomial", "poisson",
    "exponential_", "log_normal_", "cauchy_", "geometric_", "trunc_normal_", "kaiming_normal_",
    "kaiming_uniform_", "xavier_normal_", "xavier_uniform_", "orthogonal_",
}  # fmt: skip
SEEDS = {"manual_seed", "manual_seed_all", "seed", "set_rng_state"}
# Where torch's global generator is meant: initial weights, dropout, and what saves its state.
GLOBAL_GENERATOR = {"networks", "training"}


def forked(path: Path) -> set[int]:
    """Lines inside `with fork_rng()`: there a seed that was passed in is set and then forgotten."""
    blocks = [
        node
        for node in ast.walk(tree(path))
        if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(i) for i in node.items)
    ]
    return {n for block in blocks for n in range(block.lineno, (block.end_lineno or 0) + 1)}


def hidden_randomness(path: Path) -> Iterator[str]:
    contained = forked(path)
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call) or node.lineno in contained:
            continue
        text = ast.unparse(node.func)
        root, _, name = text.rpartition(".")
        keywords = {k.arg for k in node.keywords}
        if re.fullmatch(r"(np|numpy)\.random", root):
            seeded = bool(node.args or node.keywords)
            if not (
                name in {"Generator", "Philox", "PCG64", "SeedSequence", "default_rng"} and seeded
            ):
                yield f"{text} at line {node.lineno}"
        elif root == "random" and not (name == "Random" and node.args):
            yield f"{text} at line {node.lineno}"
        elif root in ("torch", "nn.init", "torch.nn.init", "init") or name.endswith("_"):
            if (name in DRAWS and "generator" not in keywords) or name in SEEDS:
                yield f"{text} at line {node.lineno}"
        elif root in ("torch.random", "torch.cuda") and name in SEEDS:
            yield f"{text} at line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_randomness_enters_as_an_argument(path: Path):
    if unit(path) in GLOBAL_GENERATOR:
        return
    assert not list(hidden_randomness(path))


def test_the_search_for_randomness_finds_it(tmp_path: Path):
    source = tmp_path / "bad.py"
    source.write_text(
        "torch.randn_like(x)\nnp.random.default_rng()\ntorch.manual_seed(0)\nrandom.random()\n"
        "x.normal_()\nnp.random.rand(3)\n"
        "torch.randn(3, generator=g)\nnp.random.default_rng(0)\nrng.normal(3)\n"
    )
    assert len(list(hidden_randomness(source))) == 6


# --- what importing costs ----------------------------------------------------------------------


def exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("module", ["sfumato", "sfumato.errors", "sfumato.cli", "sfumato.recipes"])
def test_importing_needs_no_torch(module: str):
    if not exists(module):
        pytest.skip(f"{module} does not exist yet")
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["sfumato", "sfumato.sampling", "sfumato.solvers"])
def test_extras_are_not_imported_with_the_library(module: str):
    extras = ("diffusers", "scipy", "matplotlib", "tensorboard", "tifffile", "imagecodecs", "PIL")
    extras += ("lightning_fabric",)
    code = f"import sys, {module}; print([m for m in {extras} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_one_process_needs_no_fabric():
    code = "import sys, sfumato.recipes.run; print('lightning_fabric' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
