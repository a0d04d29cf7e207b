"""`sfumato data WHAT`: making and preparing images."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

WHAT = {
    "pack": "write images as tar shards with checksums, to train on them as a stream",
    "clouds": "draw clouds and shadows over images: pairs to learn or to test restoration with",
}
_USAGE = "usage: sfumato data WHAT [OPTIONS]    (sfumato data WHAT --help tells its options)"


def run(arguments: Sequence[str]) -> int:
    """Run one of them."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    what = arguments[0]
    if what not in WHAT:
        close = difflib.get_close_matches(what, WHAT, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"{_overview()}\n\nsfumato data: unknown {what!r}{hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"sfumato.cli.data_{what}")
    return module.run(arguments[1:])


def _overview() -> str:
    return "\n".join([_USAGE, "", *(f"  {name:<11} {text}" for name, text in WHAT.items())])
