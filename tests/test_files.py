"""Files that appear whole, and JSON that any reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sfumato.files import write_json


def never(word: str) -> float:
    raise AssertionError(f"{word} is not JSON")


def test_what_is_no_finite_number_is_null_however_deep(tmp_path: Path) -> None:
    path = tmp_path / "made" / "it.json"
    write_json(
        path, {"a": math.nan, "b": [1.5, (math.inf, {"c": -math.inf})], "d": "±", "e": True, "f": 3}
    )
    kept = json.loads(path.read_text(encoding="utf-8"), parse_constant=never)
    assert kept == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "±", "e": True, "f": 3}
    assert kept["e"] is True
    with pytest.raises(TypeError):
        write_json(path, {"what": object()})
    assert [file.name for file in path.parent.iterdir()] == ["it.json"]
    assert json.loads(path.read_text(encoding="utf-8")) == kept
