"""Reads WebDataset tars: files of one name before the first dot are one sample.
One of the readers of containers. Nothing is extracted, so no member's name can lead anywhere."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import caption_kinds
from pipelines.data.sources.files import MAX_IMAGE_BYTES
from pipelines.data.sources.raw import clean, clean_texts
from pipelines.data.sources.rows import new_row

MAX_TEXT_BYTES = 16 * 2**20
MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
TEXT_NAME = "txt"


def read_tar(path: str, source: SourceConfig, extra: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Stream a tar's samples as rows with their image.

    Raises:
        DataError: no tar, or one that ends early.
    """
    with paths.open_stream(path) as stream:
        for name, members in _samples(stream, path):
            yield _row(path, name, members, source, extra)


def _samples(
    stream: pa.NativeFile, path: str
) -> Iterator[tuple[str, dict[str, tuple[str, bytes | None]]]]:
    """(name, ending -> (member, bytes)) of each sample; no bytes: too many to read."""
    name: str | None = None
    members: dict[str, tuple[str, bytes | None]] = {}
    for member, data in _members(stream, path):
        match = MEMBER.fullmatch(member)
        if match is None:
            continue
        stem, ending = match[1], match[2].lower()
        if members and (stem != name or ending in members):
            assert name is not None
            yield name, members
            members = {}
        name = stem
        members[ending] = (member, data)
    if members:
        assert name is not None
        yield name, members


def _members(stream: pa.NativeFile, path: str) -> Iterator[tuple[str, bytes | None]]:
    """(name, bytes) of the plain files in a tar, in its order."""
    count = 0
    try:
        end = _End(stream)
        with tarfile.open(fileobj=end, mode="r|", errors="replace") as tar:
            for info in tar:
                # A link or a sparse file may claim any size, and no writer of samples makes one.
                if info.isreg() and not info.issparse():
                    content = tar.extractfile(info)
                    assert content is not None
                    yield info.name, content.read() if info.size <= _limit(info.name) else None
                    count += 1
                tar.members = []  # type: ignore[attr-defined]  # it would remember each, for the whole of a large tar
        if not end.is_marked():
            raise tarfile.ReadError("it ends early")
    except (tarfile.TarError, EOFError, OverflowError, UnicodeError) as error:
        raise DataError(
            f"{path}: not a whole tar: {paths.one_line(error)} after {count:,} files; "
            "fetch it again or take it out of the source"
        ) from None


class _End(io.BufferedIOBase):
    """A tar's stream that tells whether the tar's end mark was there: tarfile does not ask."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._end = b""

    def read(self, size: int | None = -1, /) -> bytes:
        data: bytes = self._stream.read(size)
        self._end = (self._end + data)[-tarfile.BLOCKSIZE :]
        return data

    def is_marked(self) -> bool:
        while self.read(tarfile.RECORDSIZE):
            pass
        return self._end == bytes(tarfile.BLOCKSIZE)


def _limit(name: str) -> int:
    return MAX_IMAGE_BYTES if name.lower().endswith(paths.IMAGES) else MAX_TEXT_BYTES


def _row(
    path: str,
    name: str,
    members: dict[str, tuple[str, bytes | None]],
    source: SourceConfig,
    extra: Sequence[str],
) -> dict[str, Any]:
    images = [ending for ending in members if f".{ending}".endswith(paths.IMAGES)]
    # `jpg` before `mask.png`, whatever their order.
    image = min(images, key=lambda ending: ending.count("."), default=None)
    member, data = members[image] if image is not None else (name, None)
    fields = read_fields(members.get("json", ("", None))[1])
    row = new_row(f"{path}::{member}", source)
    row["texts"] = [
        {"source": c["source"], "kind": c["kind"], "texts": c["text"], "sentences": False}
        for c in read_captions(source, members.get("txt", ("", None))[1], fields)
    ]
    row["columns"] = dict(read_columns(fields, extra))
    row["data"] = data
    if image is None:
        return row | {"reason": "missing_file", "detail": f"no image among {', '.join(members)}"}
    if data is None:
        return row | {"reason": "too_large", "detail": f"more than {MAX_IMAGE_BYTES} bytes"}
    if not row["texts"]:
        return row | {"reason": "no_caption", "detail": "no caption in its .txt or .json"}
    return row


def read_captions(
    source: SourceConfig, text: bytes | None, fields: dict[str, Any]
) -> list[dict[str, Any]]:
    """Captions as {"source", "kind", "text": [str, ...]}, each text once."""
    cells: dict[str, Any] = dict(fields)
    if text is not None:
        cells[TEXT_NAME] = text.decode("utf-8", "replace")
    captions: list[dict[str, Any]] = []
    seen: set[str] = set()
    for name, kind in caption_kinds(source, cells).items():
        texts = clean_texts(cells[name])
        # img2dataset writes one caption into both files.
        fresh = [item for item in texts if item not in seen]
        seen.update(fresh)
        if fresh:
            captions.append({"source": name.removesuffix("_captions"), "kind": kind, "text": fresh})
    return captions


def read_fields(data: bytes | None) -> dict[str, Any]:
    """The object that a .json holds; empty if it holds none."""
    try:
        fields = json.loads((data or b"").decode("utf-8", "replace"))
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def read_columns(fields: dict[str, Any], extra: Sequence[str]) -> dict[str, str]:
    """Those of the extra columns that are there, as text."""
    return {name: clean(str(fields[name])) for name in extra if fields.get(name) is not None}
