"""Files behind http(s) URLs: with a time limit, several tries, and going on where one broke off."""

from __future__ import annotations

import errno
import http.client
import io
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sfumato.data.shards.table import ShardError

_LOG = logging.getLogger(__name__)
_CHUNK = 2**20
_FINAL = range(400, 500)  # the server's last word, but for ...
_BUSY = (408, 425, 429)
_GONE = (404, 410)
FULL = (errno.ENOSPC, errno.EDQUOT)


class GoneError(ShardError):
    """A file that the server says it does not have."""


class UnreachedError(ShardError):
    """A file that could not be had in all of the tries, but may be later."""


@dataclass(frozen=True)
class Fetch:
    """How patiently URLs are read.

    timeout: seconds without a byte after which a connection counts as dead. tries: connections in
    all. pause: seconds before the second try, doubled for each further one.
    """

    timeout: float = 30.0
    tries: int = 5
    pause: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what could never read anything."""
        if not (self.timeout > 0 and self.tries >= 1 and self.pause >= 0):
            raise ValueError(f"expected timeout > 0, tries >= 1 and pause >= 0, got {self}")

    def to_file(self, url: str, path: Path, length: int | None = None) -> None:
        """Write what a URL gives to a file; ShardError where it cannot be had whole.

        length: bytes it is known to have.
        """
        with path.open("wb") as file:
            self._tried(url, lambda: _append(url, file, self.timeout, length))

    def read(self, url: str) -> bytes:
        """Return what a URL gives, which should be small."""
        buffer = io.BytesIO()
        self._tried(url, lambda: _append(url, buffer, self.timeout, None))
        return buffer.getvalue()

    def stamp(self, url: str) -> str | None:
        """Return what changes when a file does; None where the server does not say."""
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                told = [answer.headers.get(k) for k in ("Content-Length", "ETag", "Last-Modified")]
        except _BROKEN:  # HTTPError is a URLError
            return None
        return None if told[0] is None or told[1:] == [None, None] else repr(told)

    def _tried(self, url: str, attempt: Callable[[], None]) -> None:
        """Try until it works, with a note in the log that it did not at once."""
        for number in range(1, self.tries + 1):
            try:
                attempt()
            except urllib.error.HTTPError as error:
                refused = error.code in _FINAL and error.code not in _BUSY
                complaint = f"the server answers {error.code} {error.reason}"
                if refused:
                    kind = GoneError if error.code in _GONE else ShardError
                    raise kind(complaint) from error
            except _BROKEN as error:
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                complaint = _reason(error)
            else:
                return
            if number == self.tries:
                raise UnreachedError(f"{complaint}, after {number} tries")
            if number == 1:
                waits = self.pause * (2 ** (self.tries - 1) - 1)
                _LOG.warning("%s: %s; trying again for %g s", url, complaint, waits)
            time.sleep(self.pause * 2 ** (number - 1))


class _ShortError(Exception):
    """A transfer that ended early."""


# OSError: refused, reset, timed out, no route, TLS that broke, and urllib's own URLError.
_BROKEN = (OSError, http.client.HTTPException, _ShortError)


def is_url(path: str) -> bool:
    """Whether a path is an http(s) URL."""
    return path.startswith(("http://", "https://"))


def beside(base: str, name: str) -> str:
    """The URL of a file in the folder `base`, which ends in a slash; a query there is kept."""
    parts = urllib.parse.urlsplit(base)
    path = parts.path + urllib.parse.quote(name)
    return urllib.parse.urlunsplit(parts._replace(path=path))


def _append(url: str, file: BinaryIO, timeout: float, length: int | None) -> None:
    """Write a URL's bytes to a file that may hold the first of them already."""
    have = file.seek(0, 2)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies behind what we have: it is all, or not what we thought
            file.truncate(0)
            raise _ShortError("the server refuses to go on where the transfer broke off") from error
        raise
    with answer:
        partial = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        if have and not partial:
            file.seek(0)
            file.truncate()
            have = 0
        told = answer.headers.get("Content-Length")
        total = have + int(told) if told and told.isdigit() else length
        if length is not None and total is not None and total != length:
            raise ShardError(f"expected {length:,} bytes, the server has {total:,}")
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            have += len(chunk)
    if total is not None and have != total:
        raise _ShortError(f"it broke off after {have:,} of {total:,} bytes")


def _reason(error: BaseException) -> str:
    """Why a connection failed, in words."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return f"it broke off after {len(error.partial):,} bytes"
    return str(cause) or type(cause).__name__
