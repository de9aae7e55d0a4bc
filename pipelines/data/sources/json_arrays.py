"""Reads lists that are one JSON document: an array of records, alone or as a field of an object.
One of the readers of lists: LLaVA's, ShareGPT4V's and RedCaps' are such. Taken piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.cells import cell_strings
from pipelines.data.sources.columns import (
    LeftOut,
    caption_kinds,
    caption_source,
    choose_columns,
    is_caption_like,
)
from pipelines.data.sources.encodings import find_encoding, head_as_utf8, to_utf8
from pipelines.data.sources.raw import RAW_SCHEMA, in_batches, locate, shorten

BATCH_ROWS = 4096
READ_BYTES = 2**20
MAX_ENTRY_BYTES = 16 * 2**20
LOOKED_AT = 100  # entries whose fields say what the columns are
# Fields of an object whose array holds the records.
RECORDS = ("annotations", "data", "records", "items", "rows", "entries", "samples", "images")
_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"[\s,\ufeff]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?P<end>"?)|[\[\]{},]', re.DOTALL)
_HAS_BORDER = re.compile(r'\{|[^,"]*"')  # a scalar ends at its comma


@dataclass(frozen=True)
class Broken:
    """An entry that is no JSON, and what is wrong with it."""

    detail: str


def read_array(
    path: str, source: SourceConfig, extra: Sequence[str], left_out: LeftOut
) -> Iterator[pa.Table]:
    """Stream a list as tables of RAW_SCHEMA.

    Raises:
        DataError: no array of records, one that ends early, or a column that is not there.
    """
    with paths.open_stream(path) as stream:
        yield from parse_array(stream, path, source, extra, left_out)


def parse_array(
    stream: pa.NativeFile,
    path: str,
    source: SourceConfig,
    extra: Sequence[str],
    left_out: LeftOut,
) -> Iterator[pa.Table]:
    """Tables of RAW_SCHEMA of an encoded stream that starts with the document."""
    encoding = find_encoding(paths.head(path), source, path)
    root = source.image_root or paths.parent(path)
    reader: _Rows | None = None
    for entries in in_batches(read_entries(to_utf8(stream, encoding), path), BATCH_ROWS):
        reader = reader or _Rows(path, source, root, extra, left_out, entries)
        rows = [reader.row(entry, number) for number, entry in entries]
        yield pa.Table.from_pylist(rows, RAW_SCHEMA)


def list_entries(stream: pa.NativeFile, path: str) -> Iterator[tuple[int, Any]]:
    """Number from 1 and value of each entry of an array.

    Raises:
        DataError: no array, or one that is broken.
    """
    for number, entry in read_entries(to_utf8(stream, "utf-8-sig"), path):
        if isinstance(entry, Broken):
            raise DataError(
                f"{path}: broken JSON after entry {number - 1:,}: {entry.detail}; fetch or write "
                "the file again"
            )
        yield number, entry


def read_entries(stream: pa.NativeFile, path: str) -> Iterator[tuple[int, Any]]:
    """Number from 1 and value of each entry, of a stream of UTF-8; a broken one is `Broken`.

    Raises:
        DataError: no array of records, or one that ends early.
    """
    text = _Text(stream)
    depth = _enter(text, path)
    number = 0
    while True:
        text.skip(_SPACE)
        if text.take("]"):
            text.leave(depth)
            text.skip(_SPACE)
            if text.peek() == "":
                return
            try:
                depth = _enter(text, path)  # documents that were joined end to end
            except DataError:
                yield number + 1, Broken("text follows the array")
                return
            continue
        number += 1
        if text.peek() == "":
            raise DataError(
                f"{path}: broken JSON after entry {number - 1:,}: it ends early; fetch or write "
                "the file again"
            )
        entry = text.value()
        if isinstance(entry, Broken) and text.peek() == "":
            raise DataError(
                f"{path}: broken JSON after entry {number - 1:,}: {entry.detail}; fetch or write "
                "the file again"
            )
        if isinstance(entry, dict) and entry:
            text.records_start_with(next(iter(entry)))
        yield number, entry


def array_kind(path: str, source: SourceConfig) -> str | None:
    """`conversations` or `records` for a file that holds an array of such; None: it holds none."""
    raw = paths.head(path)
    head = head_as_utf8(raw, find_encoding(raw, source, path)).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not _is_document(head):
        return None
    text = _Text(pa.BufferReader(head))
    try:
        _enter(text, path)
    except DataError:
        return None
    text.skip(_SPACE)
    entry = text.value() if text.peek() not in ("]", "") else {}
    fields = entry if isinstance(entry, dict) else {}
    if "conversations" in fields and not any(
        name != "conversations" for name in caption_kinds(source, fields)
    ):
        return "conversations"
    return "records"


def _is_document(head: bytes) -> bool:
    if head[:1] == b"[":
        return True
    if head[:1] != b"{":
        return False
    line = head.split(b"\n", 1)[0]
    try:
        fields = json.loads(line, strict=False)
    except (ValueError, RecursionError):
        return True  # an object over several lines, or one that is longer than the head
    return any(_is_records(fields.get(name)) for name in RECORDS)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


class _Rows:
    """Entries as rows, once the first ones have told the columns."""

    def __init__(
        self,
        path: str,
        source: SourceConfig,
        root: str,
        extra: Sequence[str],
        left_out: LeftOut,
        entries: Sequence[tuple[int, Any]],
    ) -> None:
        self._source, self._root, self._extra = source, root, extra
        self._left_out = left_out
        first = [entry for _, entry in entries[:LOOKED_AT] if isinstance(entry, dict)]
        names = list(dict.fromkeys(name for entry in first for name in entry))
        if not names:
            raise DataError(
                f"{path}: its entries are no objects; an array of records with a URL and captions "
                "is due"
            )
        self._columns = choose_columns(source, path, names, extra)
        left_out.add(names, self._columns)

    def row(self, entry: Any, number: int) -> dict[str, Any]:
        if isinstance(entry, Broken):
            return _bad(f"entry {number}: {entry.detail}")
        image = entry.get(self._columns.url) if isinstance(entry, dict) else None
        place = next(iter(cell_strings(image)), None) if image is not None else None
        if place is None or isinstance(image, dict):
            shown = shorten(_spelled(entry))
            return _bad(f"entry {number}: no '{self._columns.url}': {shown}")
        url, reason, detail = locate(place.strip(), self._root)
        captions, complaints = [], []
        for name, kind in caption_kinds(self._source, entry).items():
            said: list[str] = []
            texts = cell_strings(entry[name], said)
            captions.append({"source": caption_source(name), "kind": kind, "text": texts})
            complaints += [f"{name}: {complaint}" for complaint in said]
        if reason is None and complaints and not any(caption["text"] for caption in captions):
            reason, detail = "no_caption", complaints[0]
        self._count(entry, set(caption_kinds(self._source, entry)))
        return {
            "url": url,
            "captions": captions,
            "columns": _columns(entry, self._extra),
            "reason": reason,
            "detail": detail,
        }

    def _count(self, entry: dict[str, Any], used: set[str]) -> None:
        for name, value in entry.items():
            if name not in used and value and is_caption_like(name):
                self._left_out.count(name, 1)


def _columns(entry: dict[str, Any], extra: Sequence[str]) -> list[tuple[str, str]]:
    values = ((name, entry.get(name)) for name in extra)
    return [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in values
        if value is not None
    ]


def _bad(detail: str) -> dict[str, Any]:
    return {"url": "", "captions": [], "columns": [], "reason": "bad_row", "detail": detail}


def _spelled(entry: Any) -> str:
    try:
        return json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace").decode()
    except (ValueError, RecursionError):
        return type(entry).__name__


def _enter(text: _Text, path: str) -> int:
    """Go behind the bracket that opens the array of records; in how many objects it is."""
    text.skip(_SPACE)
    if text.take("["):
        return 0
    if text.take("{"):
        while True:
            text.skip(_SPACE)
            name = text.value() if text.peek() == '"' else None
            text.skip(_SPACE)
            if not isinstance(name, str) or not text.take(":"):
                break
            text.skip(_SPACE)
            if name in RECORDS and text.take("["):
                return 1
            if isinstance(text.value(), Broken):
                break
    raise DataError(
        f"{path}: no array of records in it; an array [{{...}}, ...], or an object with such an "
        f"array as {', '.join(RECORDS[:4])}, is due; or JSON Lines, one object a line"
    )


class _Text:
    """A stream of UTF-8 as text of which only a window is in memory."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream, self._at_end = stream, False
        self._rest = b""
        self._text, self._at = "", 0
        self._first_name = ""
        self._border: re.Pattern[str] | None = None

    def records_start_with(self, name: str) -> None:
        """The first name of a record, by which the one behind a broken one is found."""
        if name != self._first_name:
            self._first_name = name
            self._border = re.compile(rf"(?=,\s*\{{\s*{re.escape(json.dumps(name))})")

    def peek(self) -> str:
        """The next character; empty at the end."""
        if self._at >= len(self._text):
            self._read()
        return self._text[self._at : self._at + 1]

    def take(self, character: str) -> bool:
        taken = self.peek() == character
        self._at += taken
        return taken

    def skip(self, pattern: re.Pattern[str]) -> None:
        while True:
            match = pattern.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._read():
                return

    def value(self) -> Any:
        """The JSON value that starts here, or `Broken`; what follows is looked at next."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self._text) - 16 or error.msg.startswith("Unterminated")
                if is_cut and len(self._text) - self._at < MAX_ENTRY_BYTES and self._read():
                    continue
                detail = f"no JSON: {error.msg}: {shorten(self._text[self._at : self._at + 80])}"
            except (RecursionError, ValueError) as error:  # a number of thousands of digits
                deep = isinstance(error, RecursionError)
                detail = "nested too deep" if deep else str(error)[:100]
            else:
                if end == len(self._text) and self._read():
                    continue  # a number may be longer
                self._at = end
                return value
            if not self._pass_border():
                self._pass_over()
            return Broken(detail)

    def leave(self, depth: int) -> None:
        """Go behind the brackets that close the objects of which `depth` are open."""
        if depth:
            self._pass_over(depth)

    def _pass_border(self) -> bool:
        """Go to where the next record starts as others did, whatever quotes are missing."""
        while self._border is not None and _HAS_BORDER.match(self._text, self._at):
            border = self._border.search(self._text, self._at)
            if border is not None:
                self._at = border.end()
                return True
            if len(self._text) - self._at > MAX_ENTRY_BYTES or not self._read():
                break
        return False

    def _pass_over(self, depth: int = 0) -> None:
        """Go behind a value that is no JSON, by its brackets; without any, to the next comma."""
        at = self._at
        while True:
            token = _TOKEN.search(self._text, at)
            if token is None:
                at = len(self._text)
                self._at = at  # nothing in front of it is needed any more
                if not self._read():
                    return
                at = self._at
                continue
            if token["end"] == "" and len(self._text) - token.start() < MAX_ENTRY_BYTES:
                self._at = token.start()  # a text that goes on
                if not self._read():
                    self._at = len(self._text)
                    return
                at = self._at
                continue
            at = token.end()
            if token[0] in "[{":
                depth += 1
            elif token[0] == "," and depth == 0:
                self._at = token.start()
                return
            elif token[0] in "]}":
                depth -= 1
                if depth == 0:
                    self._at = at
                    return
                if depth < 0 and token[0] == "]":
                    self._at = token.start()
                    return
                depth = max(depth, 0)  # a stray brace

    def _read(self) -> bool:
        """More text behind what is not yet used; False: there is no more."""
        if self._at_end:
            return False
        window = len(self._text) - self._at
        data = self._stream.read(max(READ_BYTES, window))
        self._at_end = not data
        data = self._rest + data
        # A character may be cut; it is whole with the next bytes.
        cut = (
            0
            if self._at_end
            else next((n for n in range(1, min(4, len(data)) + 1) if data[-n] >= 0xC0), 0)
        )
        self._rest = data[len(data) - cut :] if cut else b""
        text = data[: len(data) - cut].decode("utf-8", "replace")
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(text) or not self._at_end
