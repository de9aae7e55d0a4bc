"""Cuts a delimited list into records: which quotes open cells, and which are broken.
Stands before Arrow's parser, which would run the rows behind a broken quote together."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

Quoting = Literal["doubled", "escaped", "none"]
MAX_RECORD_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Dialect:
    """How a list separates and quotes its cells; lines end with LF or CR LF."""

    delimiter: str
    quoting: Quoting


@dataclass(frozen=True)
class Cut:
    """A block's records.

    Attributes:
        records: those that are whole, without those in `broken`.
        used: bytes of the block that the records and the broken lines take.
        broken: lines that a broken quote spoils, each with what is wrong.
    """

    records: bytes
    used: int
    broken: list[tuple[bytes, str]]


def cut_records(block: bytes, dialect: Dialect, at_end: bool) -> Cut:
    """The whole records at the start of a block that starts at a record.

    A quote opens a cell at the cell's start alone. Where it is not closed, or where text follows
    the quote that closes it, its line is broken and the next line is read as if nothing had been.

    Args:
        at_end: nothing follows the block.
    """
    if dialect.quoting == "none" or b'"' not in block:
        used = len(block) if at_end else block.rfind(b"\n") + 1
        return Cut(_plain(block[:used]), used, [])
    cutter = _Cutter(block, dialect, at_end)
    cutter.run()
    return cutter.cut()


class _Cutter:
    def __init__(self, block: bytes, dialect: Dialect, at_end: bool) -> None:
        self._block, self._at_end = block, at_end
        self._patterns = _patterns(dialect)
        self._line = 0  # where the record starts that is looked at
        self._end = 0  # of what is whole
        self._quoted: list[tuple[int, int]] = []
        self._broken: list[tuple[int, int, str]] = []

    def run(self) -> None:
        block, patterns = self._block, self._patterns
        position = 0
        while (opening := patterns.opening.search(block, position)) is not None:
            start = opening.end() - 1
            self._line = max(self._line, block.rfind(b"\n", position, start) + 1)
            cell = patterns.cell.match(block, start)
            if cell is None:
                if not self._at_end and len(block) - start < MAX_RECORD_BYTES:
                    break  # it may be closed in the next block
                position = self._skip(start, "a quote is not closed")
            elif cell.end() == len(block) and not self._at_end:
                break  # what follows the closing quote is not there yet
            elif not patterns.following.match(block, cell.end()):
                position = self._skip(start, "text follows a quoted cell, or its quote is broken")
            elif b"\n" in cell[0] and patterns.swallows(cell[0]):
                position = self._skip(start, "a broken quote runs it into the next rows")
            else:
                position = cell.end()
                self._quoted.append((start, position))
            if position < 0:
                break
        else:
            last = block.rfind(b"\n", position) + 1
            self._end = len(block) if self._at_end else max(last, self._line)
            return
        self._end = self._line

    def cut(self) -> Cut:
        pieces, broken, start = [], [], 0
        for low, high, why in self._broken:
            pieces.append(self._records(start, low))
            broken.append((self._block[low:high], why))
            start = high
        pieces.append(self._records(start, self._end))
        return Cut(b"".join(pieces), self._end, broken)

    def _skip(self, start: int, why: str) -> int:
        """Leave out the record that holds `start`, up to the end of that line; where the next one
        starts, or -1 if the block has no more."""
        end = self._block.find(b"\n", start) + 1
        if end == 0:
            if not self._at_end:
                return -1
            end = len(self._block)
        self._broken.append((self._line, end, why))
        while self._quoted and self._quoted[-1][0] >= self._line:
            self._quoted.pop()
        self._line = end
        return end

    def _records(self, start: int, end: int) -> bytes:
        block = self._block[start:end]
        if b"\r" not in block or not re.search(rb"\r(?!\n)", block):
            return block
        pieces = []  # Arrow takes a CR for a line's end wherever it is not quoted
        for low, high in self._quoted:
            if start <= low < end:
                pieces += [_plain(self._block[start:low]), self._block[low:high]]
                start = high
        return b"".join([*pieces, _plain(self._block[start:end])])


class _Patterns:
    def __init__(self, dialect: Dialect) -> None:
        mark = re.escape(dialect.delimiter.encode())
        self.opening = re.compile(rb'(?:\A|(?<=[%s\n]))"' % mark)
        inside = {
            "doubled": rb'[^"]*+(?:""[^"]*+)*+',
            "escaped": rb'[^"\\]*+(?:(?:\\.|"")[^"\\]*+)*+',
        }
        self.cell = re.compile(rb'"%s"' % inside[dialect.quoting], re.DOTALL)
        self.following = re.compile(rb"[%s\n]|\r\n|\r?\Z" % mark)
        # A quote that closes where a cell starts was meant to open that cell.
        self._reopened = re.compile(rb'[%s\n]"+\Z|[%s\n]""[%s\n]' % (mark, mark, mark))
        url = rb'"*https?://[^\s%s"]+"*' % mark
        first = rb'(?:\n|\A")'
        self._row = re.compile(rb"%s%s%s|%s%s(?:%s|\r?\n|\Z)" % (first, url, mark, mark, url, mark))

    def swallows(self, cell: bytes) -> bool:
        """Whether a cell with line breaks holds rows: a URL that fills a cell, and a quote that
        was meant to open one."""
        return self._reopened.search(cell) is not None and self._row.search(cell) is not None


@functools.lru_cache(maxsize=64)
def _patterns(dialect: Dialect) -> _Patterns:
    return _Patterns(dialect)


def _plain(records: bytes) -> bytes:
    """Records without quoted cells; a CR within a line is not its end."""
    if b"\r" not in records:
        return records
    return records.replace(b"\r\n", b"\n").replace(b"\r", b" ")
