"""The file: a header that says what is needed to decode it, then streams of bits, then a checksum.

docs/codec.md describes the format byte by byte. Reading trusts nothing: every length is checked
before it is used, and a checksum over everything comes first.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from sfumato.codec.relative_entropy import SEARCH
from sfumato.errors import CodecError

MAGIC = b"\x89SFU"
VERSION = 1
KINDS = ("bits-back", "staged", "lossy", "plain")
_SMALLEST = len(MAGIC) + 1 + 4
_KIND = len(MAGIC) + 1
_MOST = 2**40
_DTYPES = ("uint8", "uint16")


@dataclass(frozen=True)
class Header:
    """What a decoder has to know.

    `model` (8 bytes) and `probe` (4 bytes) are hashes of the weights and of what they answered on
    the coding machine, `pixels` is the CRC-32 of what it decodes to. `top` is the highest pixel
    value above `low`, `levels` says how many noise levels; a chunk is searched for among 2^`search`
    candidates, 0 where there are no chunks; `batch` images are asked about at once, on `threads`
    threads. `raw` are the places of images that are kept as they are.
    """

    kind: str
    model: bytes
    probe: bytes
    pixels: int
    shape: tuple[int, int, int]
    dtype: str
    low: int
    top: int
    count: int
    levels: int
    search: int
    batch: int
    threads: int
    raw: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no encoder writes."""
        whole = (*self.shape, self.top, self.count, self.batch, self.threads)
        good = (
            self.kind in KINDS
            and self.dtype in _DTYPES
            and len(self.model) == 8
            and len(self.probe) == 4
            and min(whole) >= 1
            and (2 if self.kind == "bits-back" else 1) <= self.levels <= 65_536
            and 0 <= self.pixels < 2**32
            and (self.search in SEARCH if self.kind in ("staged", "lossy") else not self.search)
            and max(self.batch, self.threads) <= 1024
            and self.count <= 2**24
            and self.low >= 0
            and self.low + self.top < 2 ** (8 if self.dtype == "uint8" else 16)
            and all(a < b for a, b in zip(self.raw, self.raw[1:], strict=False))
            and (not self.raw or (self.raw[0] >= 0 and self.raw[-1] < self.count))
        )
        if not good:
            raise CodecError("this file's header makes no sense: it is damaged")


@dataclass(frozen=True)
class Container:
    """A header, and as many sections of bytes as its kind has."""

    header: Header
    sections: Sequence[bytes]
    whole: bool = True
    """False for the beginning of a file, whose last section is cut short."""

    def to_bytes(self) -> bytes:
        """Return the file."""
        h = self.header
        out = bytearray(MAGIC)
        out.append(VERSION)
        out.append(KINDS.index(h.kind))
        out.append(_DTYPES.index(h.dtype))
        out += h.model + h.probe + h.pixels.to_bytes(4, "little")
        numbers = [*h.shape, h.low, h.top, h.count, h.levels, h.search, h.batch]
        numbers.append(h.threads)
        numbers += [len(h.raw), *_gaps(h.raw), len(self.sections), *map(len, self.sections)]
        for number in numbers:
            out += _varint(number)
        for section in self.sections:
            out += section
        return bytes(out + zlib.crc32(out).to_bytes(4, "little"))

    @classmethod
    def from_bytes(cls, data: bytes, *, beginning: bool = False) -> Self:
        """Read a file; CodecError says what is wrong with it.

        The `beginning` of one is read as far as it goes: it has no checksum to be checked by.
        """
        if not data:
            raise CodecError("this file is empty")
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise CodecError("this is no file of sfumato compress: it does not begin like one")
        if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
            raise CodecError(
                f"this file is of format {data[len(MAGIC)]}, and this sfumato reads {VERSION}: "
                "update sfumato"
            )
        whole = len(data) >= _SMALLEST and zlib.crc32(data[:-4]) == _number(data[-4:])
        if not whole and not beginning:
            tip = ""
            if len(data) > _KIND and data[_KIND] in map(KINDS.index, ("staged", "lossy")):
                tip = " If only its end is missing, decompress --preview shows what is there"
            raise CodecError(
                "this file is damaged: its checksum is another's. Was it copied whole, and as "
                f"binary?{tip}"
            )
        reader = _Reader(data[:-4] if whole else data, len(MAGIC) + 1)
        header, lengths = _header(reader)
        if whole:
            sections = [reader.take(length) for length in lengths]
            reader.end()
            return cls(header, sections)
        if len(lengths) != 1:
            raise CodecError("this file is damaged, and its kind has no use for a part of it")
        rest = reader.rest()
        if header.count > 8 * len(rest) + 64:
            raise CodecError("this file ends too early: nothing of its images is there")
        if len(rest) >= lengths[0] + 4:
            raise CodecError("this file is damaged, not cut short: its checksum is another's")
        return cls(header, [rest[: lengths[0]]], whole=False)


def _header(reader: _Reader) -> tuple[Header, list[int]]:
    """Read a header and the lengths of the sections."""
    kind, dtype = reader.choice(KINDS), reader.choice(_DTYPES)
    model, probe, pixels = reader.take(8), reader.take(4), _number(reader.take(4))
    c, h, w, low, top, count = (reader.number() for _ in range(6))
    levels, search, batch, threads = (reader.number() for _ in range(4))
    raw, place = list[int](), -1
    for _ in range(reader.count()):
        place += 1 + reader.number()
        raw.append(place)
    lengths = [reader.number() for _ in range(reader.count())]
    if count > 8 * sum(lengths) + 64:
        raise CodecError("this file is damaged: it holds no bit for some of its images")
    header = Header(
        kind,
        model,
        probe,
        pixels,
        (c, h, w),
        dtype,
        low,
        top,
        count,
        levels,
        search,
        batch,
        threads,
        tuple(raw),
    )
    return header, lengths


class _Reader:
    """Bytes, read one thing after another."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place

    def take(self, count: int) -> bytes:
        """The next so many."""
        if count > len(self._data) - self._place:
            raise CodecError("this file is damaged: it ends too early")
        self._place += count
        return self._data[self._place - count : self._place]

    def choice(self, of: Sequence[str]) -> str:
        """A byte that is the place of a word."""
        place = self.take(1)[0]
        if place >= len(of):
            raise CodecError(f"this file holds something unknown to this sfumato ({place})")
        return of[place]

    def number(self) -> int:
        """A whole number, seven bits a byte, the lowest first."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if value > _MOST:
                raise CodecError("this file is damaged: a number in it is too large")
            if byte < 128:
                return value

    def count(self) -> int:
        """How many things follow: at least a byte each."""
        value = self.number()
        if value > len(self._data) - self._place:
            raise CodecError("this file is damaged: it ends too early")
        return value

    def rest(self) -> bytes:
        """All that follows."""
        return self._data[self._place :]

    def end(self) -> None:
        """Nothing may follow."""
        if self._place != len(self._data):
            raise CodecError("this file is damaged: something follows its end")


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(128 | (number & 127))
        number >>= 7
    out.append(number)
    return bytes(out)


def _gaps(places: Sequence[int]) -> list[int]:
    return [b - a - 1 for a, b in zip([-1, *places], places, strict=False)]
