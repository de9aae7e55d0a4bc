"""The plain files in a tar, in their order, whatever its headers claim; tars end to end are one.
Below the reader of WebDataset tars. Nothing is extracted, so no member's name can lead anywhere."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa

from caft.errors import DataError
from pipelines import storage
from pipelines.data.sources import paths

BLOCK = tarfile.BLOCKSIZE
MARK, MARK_AT = b"ustar", 257
MAX_HEADER_BYTES = 2**20  # of a long name, or of a header in the form of POSIX's pax
PIECE_BYTES = 2**22  # that a remote tar is read in: each is a request
LOCAL_PIECE_BYTES = 2**16
NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
PACKED_DAMAGE = re.compile(r"(?i)compress|inflate|zlib|gzip|zstd|bz2|lzma|crc")


class DamagedTar(DataError):
    """A tar that is cut or no tar from some byte on; what was read before is good."""


class Member(NamedTuple):
    """A plain file in a tar: where its own header is, its name and bytes; None: too many."""

    offset: int
    name: str
    data: bytes | None


def read_members(
    stream: pa.NativeFile, path: str, limit: Callable[[str], int], start: int = 0
) -> Iterator[Member]:
    """The plain files, without the bytes of those with more than `limit(name)`. Links are left
    out.

    Args:
        start: a multiple of 512; files whose header stands before it are passed over. The first
            one's name may be cut if a longer one stands in a header of its own before `start`.

    Raises:
        DamagedTar: no tar, one that ends early, or headers that no writer makes.
    """
    blocks = _Blocks(stream, path, start)
    try:
        if start and not blocks.find_header():
            return
        yield from _members(blocks, limit)
    except (tarfile.TarError, EOFError, OverflowError, UnicodeError, ValueError) as error:
        raise blocks.damaged(paths.one_line(error)) from None
    except OSError as error:
        if not PACKED_DAMAGE.search(str(error)):
            raise  # the place it lies at, not the tar
        raise blocks.damaged(f"it ends early: {paths.one_line(error)}") from None


def can_be_cut(path: str) -> bool:
    """Whether headers are found from anywhere in a tar: it is not packed, and marks them."""
    fs, inner = storage.filesystem(path)
    with paths.reading(path), fs.open_input_file(inner) as stream:
        return _is_header(stream.read(BLOCK))


def _is_header(block: bytes) -> bool:
    if block[MARK_AT : MARK_AT + len(MARK)] != MARK:
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.HeaderError:
        return False
    return True


def _members(blocks: _Blocks, limit: Callable[[str], int]) -> Iterator[Member]:
    name: str | None = None  # of the next member, where a header in front of it says so
    size: int | None = None
    sparse = False
    ended = False  # behind a mark of the end
    while header := blocks.header():
        offset = blocks.position - BLOCK
        if header.count(0) == BLOCK:
            ended, name, size, sparse = True, None, None, False
            continue
        ended = False
        info = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        if info.size < 0:
            raise tarfile.ReadError("a member of less than no bytes")
        if info.type in NAMES:
            data = blocks.small(info.size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = data.split(b"\0", 1)[0].decode("utf-8", "replace")
        elif info.type in EXTENDED:
            fields = _fields(blocks.small(info.size))
            if info.type != tarfile.XGLTYPE:
                name = fields.get("path", name)
                size = int(fields["size"]) if fields.get("size", "").isdigit() else size
                sparse = any(key.startswith("GNU.sparse") for key in fields)
        else:
            inside = info.size if size is None else size
            called = info.name if name is None else name
            if info.type == tarfile.GNUTYPE_SPARSE:
                blocks.sparse_map(header)
            plain = info.type in tarfile.REGULAR_TYPES and info.type != tarfile.GNUTYPE_SPARSE
            if plain and not sparse and inside <= limit(called):
                yield Member(offset, called, blocks.data(inside))
                blocks.files += 1
            elif info.type not in WITHOUT_DATA:
                blocks.pass_over(inside)
                if plain and not sparse:
                    yield Member(offset, called, None)
                    blocks.files += 1
            name, size, sparse = None, None, False
    if not ended:
        raise tarfile.ReadError("it ends early")


def _fields(data: bytes) -> dict[str, str]:
    """Records `length key=value` of an extended header."""
    fields = {}
    while match := re.match(rb"(\d{1,8}) ([^=]{1,100})=", data):
        length = int(match[1])
        value = data[match.end() : length - 1]
        if length <= match.end():
            break
        fields[match[2].decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        data = data[length:]
    return fields


class _Blocks:
    """A stream in blocks of 512 bytes; `position` is where the next one starts."""

    def __init__(self, stream: pa.NativeFile, path: str, start: int) -> None:
        self._stream, self._path = stream, path
        self._buffer, self._at = b"", 0  # what is read, and where in it the next block starts
        local = storage.is_local(path)
        self._seeks = local and stream.seekable()
        self._piece = LOCAL_PIECE_BYTES if local else PIECE_BYTES
        self.position = start
        self.files = 0
        if start:
            stream.seek(start)

    def find_header(self) -> bool:
        """Go on to the next header; False: there is none."""
        while len(block := self._read(BLOCK)) == BLOCK:
            if _is_header(block):
                self._at -= BLOCK
                self.position -= BLOCK
                return True
        return False

    def damaged(self, why: str) -> DamagedTar:
        return DamagedTar(
            f"{self._path}: not a whole tar: {why} after {self.files:,} files; fetch it again or "
            "take it out of the source"
        )

    def header(self) -> bytes:
        """The next block; empty at the end."""
        header = self._read(BLOCK)
        if header and len(header) < BLOCK:
            raise tarfile.ReadError("it ends early")
        return header

    def small(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self.data(size)

    def data(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) < size:
            raise tarfile.ReadError("it ends early")
        self._skip(-size % BLOCK)
        return data

    def pass_over(self, size: int) -> None:
        self._skip(size + -size % BLOCK)

    def sparse_map(self, header: bytes) -> None:
        more = header[482]
        while more:
            more = self.data(BLOCK)[504]

    def _skip(self, size: int) -> None:
        if self._seeks and size > len(self._buffer) - self._at + LOCAL_PIECE_BYTES:
            # To the last block: that it is there shows that all before it are.
            self.position += size - BLOCK
            if self.position > self._stream.size():
                raise tarfile.ReadError("it ends early")
            self._stream.seek(self.position)
            self._buffer, self._at, size = b"", 0, BLOCK
        while size > 0:
            data = self._read(min(size, PIECE_BYTES))
            if not data:
                raise tarfile.ReadError("it ends early")
            size -= len(data)

    def _read(self, size: int) -> bytes:
        have = len(self._buffer) - self._at
        if have < size:
            pieces = [self._buffer[self._at :]]
            while have < size and (data := self._stream.read(max(size - have, self._piece))):
                pieces.append(data)
                have += len(data)
            self._buffer, self._at = b"".join(pieces), 0
        taken = self._buffer[self._at : self._at + size]
        self._at += len(taken)
        self.position += len(taken)
        return taken
