"""What messages advise exists: every option they name is one that some verb takes."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

import sfumato
from sfumato.cli import VERBS, main
from sfumato.recipes.presets import names

SOURCE = Path(sfumato.__file__).parent
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9.-]*[a-z0-9])")
# The style sheet's own names look like options.
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "style.py")


def messages(path: Path) -> list[tuple[int, str]]:
    """Strings of a module that are no docstrings, with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documentation
    ]


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every option in the help of every verb, of training with every recipe."""
    calls = [[verb, "--help"] for verb in VERBS if verb != "train"]
    calls += [["train", name, "--help"] for name in names()]
    calls += [["train", "--resume", "x", "--help"], ["train"], ["--help"]]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        for arguments in calls:
            with contextlib.suppress(SystemExit):
                main(arguments)
    text.write(get_args_parser().format_help())  # torchrun's, which some messages name
    return set(OPTION.findall(text.getvalue())) | {"help", "version"}


def test_the_search_finds_an_option_that_does_not_exist(known: set[str]) -> None:
    assert {"data", "value-range", "network.label-dropout", "class", "resume"} <= known
    assert "range" not in known
    assert OPTION.findall("correct --range LOW HIGH (not a-b--c), --fit.") == ["range", "fit"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_options_in_messages_exist(path: Path, known: set[str]) -> None:
    wrong = [
        (line, option)
        for line, text in messages(path)
        for option in OPTION.findall(text)
        if option not in known
    ]
    assert not wrong, f"{path.name} names options that do not exist: {wrong}"
