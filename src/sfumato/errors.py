"""Errors a user can act on: each says what was expected, what came, and the likely fix."""

from __future__ import annotations


class SfumatoError(Exception):
    """Base of every error that is the input's fault; the command line prints it plainly."""


class DataError(SfumatoError):
    """Images, arrays or labels that cannot be used as given."""


class CheckpointError(SfumatoError):
    """A run or checkpoint that is missing, damaged, of another version or of another shape."""


class ConfigError(SfumatoError):
    """A recipe, option or class name that does not exist or does not fit the others."""


class CodecError(SfumatoError):
    """A compressed file that is damaged, or a model that it does not belong to."""


class FinishedError(ConfigError):
    """A run is asked to go on that has done all it was to do."""


class MissingExtraError(SfumatoError):
    """An optional dependency is needed that the core install leaves out."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"pip install 'sfumato[{extra}]'"
        )


def first_line(error: Exception) -> str:
    """Return what somebody else's error says, in a line; its kind where it says nothing."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 200 else line[:200].rsplit(" ", 1)[0] + " ..."
