"""The command line: one module a verb; strings become values here and in recipes, nowhere else.

Nothing here imports torch before a verb has understood its arguments, so `--help` is quick.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

VERBS = {
    "train": "train a model on your images",
    "sample": "draw new images from a trained model",
    "evaluate": "measure how good the images of a run, or of a folder, are",
    "likelihood": "measure how many bits a dimension a run needs for images",
    "compare": "measure several samplers on one run, at equal network calls",
    "tune": "learn the best sampler of few network calls for one run",
    "ablate": "train and measure a paper's ablation at a small size",
    "invert": "find the latents of images, and measure the way back",
    "interpolate": "draw what lies between images, or seeds",
    "restore": "fill in, enlarge, deblur, denoise or colour damaged images",
    "compress": "turn images into a small file that the same run decodes",
    "decompress": "turn such a file into its images",
    "data": "pack images as shards; make pairs, such as clouded and clear ones",
    "bench": "measure how fast this machine is, and what to change",
    "info": "say what a run, checkpoint or set of images is",
    "demo": "train on real images and write a report, in minutes",
}

SHARED = ("train", "sample", "evaluate", "likelihood")
"""Verbs that torchrun may start several times, to share the work."""
_DEBUG = "SFUMATO_DEBUG"
_USAGE = "usage: sfumato VERB [OPTIONS]    (sfumato VERB --help tells a verb's options)"


def command() -> int:
    """`sfumato` as a program of its own: `main`, in a process that keeps the memory it frees."""
    from sfumato.native.memory import keep_freed_memory

    keep_freed_memory()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return 0 (done), 1 (bad input), 2 (bad usage) or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"sfumato {_version()}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"{_overview()}\n\nsfumato: unknown verb {verb!r}{hint}", file=sys.stderr)
        return 2
    from sfumato.cli.notes import complain, show_notes
    from sfumato.errors import ConfigError, SfumatoError

    show_notes()
    try:
        _refuse_processes(verb)
        module = importlib.import_module(f"sfumato.cli.{verb}")
        return module.run(arguments[1:])
    except KeyboardInterrupt:
        print(f"\nsfumato {verb}: interrupted", file=sys.stderr)
        return 130
    except (SfumatoError, ValueError, FloatingPointError, OSError) as error:
        if os.environ.get(_DEBUG):
            raise
        if not isinstance(error, BrokenPipeError):
            complain(verb, _in_words(error))
        return 2 if isinstance(error, ConfigError) else 1


def _refuse_processes(verb: str) -> None:
    """Raise ConfigError where torchrun started several copies of a verb that knows but one."""
    from sfumato.errors import ConfigError

    count = os.environ.get("WORLD_SIZE", "1")
    if verb not in SHARED and count.isdecimal() and int(count) > 1:
        raise ConfigError(
            f"{count} processes were started (WORLD_SIZE={count}), and only "
            f"{', '.join(SHARED)} share work between processes: run sfumato {verb} once, "
            "without torchrun"
        )


def _in_words(error: Exception) -> str:
    """What to tell of an error: all of a user's own one, and where to look for any other."""
    from sfumato.errors import SfumatoError

    if isinstance(error, SfumatoError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; free some space, or choose another --out" if full else ""
        return f"{where}{error.strerror or error}{hint}"
    return f"{error}\n({_DEBUG}=1 in the environment shows where)"


def _overview() -> str:
    lines = [
        f"sfumato {_version()}: diffusion models for your own images.",
        "",
        _USAGE,
        "",
        *(f"  {verb:<11} {what}" for verb, what in VERBS.items()),
        "",
        "A first run:",
        "  sfumato demo",
        "  sfumato train edm-tiny --data FOLDER --size 32 32 --minutes 10",
        "  sfumato sample runs/edm-tiny -n 64",
    ]
    return "\n".join(lines)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sfumato")
    except PackageNotFoundError:
        return "(not installed)"
