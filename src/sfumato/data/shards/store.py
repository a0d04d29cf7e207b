"""Opened shards: fetched where they are remote, checked once, few at a time, ahead of need."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sfumato.data.images import first_of
from sfumato.data.shards.fetch import FULL, Fetch, UnreachedError
from sfumato.data.shards.index import Shard
from sfumato.data.shards.places import Whereabouts
from sfumato.data.shards.table import ShardError, Table, read_table
from sfumato.errors import DataError

DISK_BYTES = 8 * 2**30
_FETCHING = 4
_MOST_OPEN = 256
_WORST_SHARE = 0.01
_AGAIN = 300.0  # seconds until an unreachable shard is tried again; doubled each time


@dataclass(frozen=True, eq=False)
class Opened:
    """A shard as a file on the disk, and where its images lie in it."""

    path: Path
    table: Table


@dataclass(eq=False)
class _Entry:
    future: Future[Opened]
    users: int = 0


@dataclass(frozen=True)
class _Later:
    """When a shard is tried again, by time.monotonic, and after how long a wait."""

    due: float
    wait: float


@dataclass(eq=False)
class Store:
    """The shards of a set, by number.

    keep: how many stay open in any case. Remote ones are files in the system's folder for temporary
    files (TMPDIR) and stay there up to `disk_bytes` in all, or `keep` shards where those are more.
    pairs: see `table`. A shard that cannot be had, is not what its checksum says, or is no whole
    tar is named in `broken`; when these are more than one, and more than 1 %, DataError. One that
    the network did not give is tried again after some minutes, and counts as sound if it comes.
    """

    where: Whereabouts
    shards: Sequence[Shard]
    fetch: Fetch
    keep: int
    pairs: bool = False
    disk_bytes: int = DISK_BYTES
    broken: dict[int, str] = field(default_factory=dict[int, str])

    def __post_init__(self) -> None:
        """Look for local shards that are missing or of another length, without opening them."""
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._checked = set[int]()
        self._later = dict[int, _Later]()
        self._pool = ThreadPoolExecutor(_FETCHING, thread_name_prefix="sfumato-shards")
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if not self.where.remote:
            for number, shard in enumerate(self.shards):
                try:
                    _expect_length(shard, Path(self.where.of(shard.name)).stat().st_size)
                except (OSError, ShardError) as error:
                    self._note(number, error)
            self.expect_enough()

    @property
    def complaints(self) -> tuple[str, ...]:
        """What is wrong with each broken shard found so far."""
        with self._lock:
            return tuple(self.broken.values())

    @contextmanager
    def opened(self, number: int) -> Generator[Opened]:
        """Open a shard, waiting for it where needed.

        ShardError where it is broken, also when that shows only while it is read.
        """
        if (complaint := self._given_up(number)) is not None:
            raise ShardError(complaint)
        entry = self._entry(number)
        try:
            try:
                shard = entry.future.result()
            except (ShardError, OSError) as error:
                if isinstance(error, OSError) and error.errno in FULL:
                    raise DataError(
                        f"no room for {self.shards[number].name} among the temporary files "
                        f"({error.strerror}): point TMPDIR to a disk with more, or pack smaller "
                        "shards"
                    ) from error
                raise self._lost(number, error, entry) from error
            if number in self._later:
                self._forgive(number)
            try:
                yield shard
            except OSError as error:  # of a disk or a server of files, once it was opened
                raise self._lost(number, error) from error
        finally:
            self._release(number, entry)

    def ahead(self, numbers: Iterable[int]) -> None:
        """Begin to open shards that will be wanted soon."""
        for number in numbers:
            if self._given_up(number) is None:
                self._release(number, self._entry(number))

    def _entry(self, number: int) -> _Entry:
        with self._lock:
            entry = self._entries.get(number)
            if entry is None:
                entry = _Entry(self._pool.submit(self._open, number))
                self._entries[number] = entry
            entry.users += 1
            self._entries.move_to_end(number)
        return entry

    def _release(self, number: int, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            idle = [(n, e) for n, e in self._entries.items() if not e.users and e.future.done()]
            for n, e in idle:
                if not self._crowded():
                    break
                del self._entries[n]
                if self.where.remote and not e.future.exception():
                    e.future.result().path.unlink(missing_ok=True)

    def _crowded(self) -> bool:
        count = len(self._entries)
        if count <= self.keep:
            return False
        if not self.where.remote or count > max(_MOST_OPEN, self.keep):
            return True
        return sum(self._length(n) for n in self._entries) > self.disk_bytes

    def _length(self, number: int) -> int:
        known = self.shards[number].bytes
        if known is not None:
            return known
        future = self._entries[number].future
        done = future.done() and not future.exception()
        return future.result().path.stat().st_size if done else 0

    def _open(self, number: int) -> Opened:
        shard = self.shards[number]
        path = Path(self.where.of(shard.name))
        if self.where.remote:
            path = self._spool() / f"{number:07d}.tar"
            try:
                self.fetch.to_file(self.where.of(shard.name), path, shard.bytes)
                self._check(number, path)
                table = read_table(path, pairs=self.pairs)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        else:
            self._check(number, path)
            table = read_table(path, pairs=self.pairs)
        if len(table) != shard.images:
            raise ShardError(f"expected {shard.images:,} images, it holds {len(table):,}")
        return Opened(path, table)

    def _check(self, number: int, path: Path) -> None:
        """Compare length and checksum, local files the first time only."""
        shard = self.shards[number]
        _expect_length(shard, path.stat().st_size)
        if shard.sha256 is None or (number in self._checked and not self.where.remote):
            return
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != shard.sha256:
            raise ShardError(
                f"its SHA-256 begins with {found[:12]}, the index says {shard.sha256[:12]}"
            )
        self._checked.add(number)

    def _spool(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="sfumato-shards-")
            return Path(self._folder.name)

    def _given_up(self, number: int) -> str | None:
        """What is wrong with a shard that is not to be opened now; None for all others."""
        with self._lock:
            later = self._later.get(number)
            if later is not None and time.monotonic() >= later.due:
                return None
            return self.broken.get(number)

    def _forgive(self, number: int) -> None:
        with self._lock:
            self._later.pop(number, None)
            self.broken.pop(number, None)

    def _note(self, number: int, error: Exception, entry: _Entry | None = None) -> str:
        """Remember what is wrong with a shard, and return it."""
        reason = error.strerror if isinstance(error, OSError) else str(error)
        shard = self.shards[number]
        with self._lock:
            held = f"all {shard.images:,} images of {shard.name}"
            complaint = f"{held} ({reason or type(error).__name__})"
            if not isinstance(error, UnreachedError):
                self._later.pop(number, None)
            elif entry is not None and self._entries.get(number) is entry:
                del self._entries[number]  # the first of its users to see it fail
                last = self._later.get(number)
                wait = _AGAIN if last is None else 2 * last.wait
                self._later[number] = _Later(time.monotonic() + wait, wait)
            return self.broken.setdefault(number, complaint)

    def _lost(self, number: int, error: Exception, entry: _Entry | None = None) -> ShardError:
        """Give up a shard, and return what is to be raised; DataError after too many."""
        complaint = self._note(number, error, entry)
        self.expect_enough()
        return ShardError(complaint)

    def expect_enough(self) -> None:
        """Raise DataError when too many shards are broken."""
        advice = _UNREACHED if self._later else _USELESS
        expect_enough(self.complaints, len(self.shards), self.where.folder, advice)


_USELESS = "Copy them again, pack them again, or leave them out"
_UNREACHED = "Where they come from has to be reached again first"


def expect_enough(broken: Sequence[str], total: int, where: str, advice: str = _USELESS) -> None:
    """Raise DataError when too many of `total` shards are broken; names up to five of them."""
    most = min(max(1, int(_WORST_SHARE * total)), total - 1)
    if len(broken) <= most:
        return
    shown = first_of(broken, 5)
    raise DataError(
        f"{where}: {len(broken)} of {total:,} shards cannot be used, and {most} may be skipped: "
        f"{shown}. {advice}"
    )


def _expect_length(shard: Shard, found: int) -> None:
    if shard.bytes is not None and found != shard.bytes:
        raise ShardError(f"expected {shard.bytes:,} bytes, it has {found:,}: cut short or replaced")
