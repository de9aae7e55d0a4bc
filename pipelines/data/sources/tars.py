"""Reads WebDataset tars: files of one name before the first dot are one sample.
One of the readers of containers; every image in a tar is a row, or is said to be left out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipelines.data.config import SourceConfig
from pipelines.data.images.formats import IMAGES, UNREAD
from pipelines.data.sources import paths
from pipelines.data.sources.beside import JSON_ENDING, TEXT_ENDINGS, look_beside
from pipelines.data.sources.columns import LeftOut
from pipelines.data.sources.files import MAX_IMAGE_BYTES
from pipelines.data.sources.rows import new_row, set_texts
from pipelines.data.sources.tar_members import DamagedTar, read_members

MAX_TEXT_BYTES = 16 * 2**20
MAX_SAMPLE_MEMBERS = 64  # more of one name before the first dot are names with dots
MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
HIDDEN = re.compile(r"(?:^|/)(?:\.[^/]*|__MACOSX(?:/.*)?)$")
LOOKED_AT_BYTES = 2**28  # of a tar whose order is looked at
Members = dict[str, tuple[str, bytes | None]]


def read_tar(
    path: str,
    source: SourceConfig,
    extra: Sequence[str],
    left_out: LeftOut,
    span: Sequence[int] | None = None,
    images: bool = True,
) -> Iterator[dict[str, Any]]:
    """Stream a tar's samples as rows with their image.

    Args:
        span: first byte and end of a part of it, multiples of 512. The parts that a tar is cut
            into give each of its samples once, whole.
        images: whether to read them; without, the rows are the same in number, order and name.

    Raises:
        DamagedTar: no tar, or one that ends early.
    """
    seen: set[bytes] = set()
    with paths.open_stream(path) as stream:
        for name, members in _groups(stream, path, left_out, span, images):
            for sample in _samples(members, left_out):
                row = _row(path, name, *sample, source, extra, left_out)
                digest = hashlib.blake2b(row["url"].encode(), digest_size=8).digest()
                number = 2
                while digest in seen:  # a second member of one name: a tar is appended to
                    again = new_row(f"{path}::{_named(name, sample[0])}#{number}", source)
                    row |= {"url": again["url"], "key": again["key"]}
                    digest = hashlib.blake2b(row["url"].encode(), digest_size=8).digest()
                    number += 1
                seen.add(digest)
                yield row


def to_its_end(
    path: str, source: SourceConfig, rows: Iterator[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A container's rows; what a damaged one does not give is one row more, rejected."""
    try:
        yield from rows
    except DamagedTar as error:
        row = new_row(f"{path}::", source)
        yield row | {"reason": "bad_row", "detail": str(error).removeprefix(f"{path}: ")}


def endings_in_order(path: str) -> list[str]:
    """The last parts of members' names in the order in which a tar changes from one to another,
    of its first megabytes; a tar that is sorted by name changes with every sample."""
    order: list[str] = []
    with paths.open_stream(path) as stream:
        for member in read_members(stream, path, lambda name: -1):
            ending = member.name.rpartition(".")[2].lower()
            if not order or order[-1] != ending:
                order.append(ending)
            if len(order) > 8 or stream.tell() > LOOKED_AT_BYTES:
                break
    return order


class _Border:
    """Where a tar is cut, as the readers of both sides find it: behind the samples that begin with
    the second file after an offset. Its first file is not asked: who starts there may not know
    its name."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._first = False
        self._stem: str | None = None
        self.passed = False

    def meet(self, offset: int, stem: str | None) -> bool:
        """Take note of the next file, whose stem is None where it belongs to no sample; whether
        it is behind the border."""
        if self.passed or offset < self._offset:
            return self.passed
        if not self._first:
            self._first = True
        elif stem is not None:
            self.passed = self._stem is not None and stem != self._stem
            self._stem = stem
        return self.passed


def _groups(
    stream: pa.NativeFile,
    path: str,
    left_out: LeftOut,
    span: Sequence[int] | None,
    images: bool,
) -> Iterator[tuple[str, Members]]:
    """(name, ending -> (member, bytes)) of members in a row that have one name before the first
    dot; no bytes: too many to read."""
    start, end = span or (0, None)
    first, last = _Border(start), None if end is None else _Border(end)
    name: str | None = None
    members: Members = {}
    limit = _limit if images else _limit_of_texts
    for offset, member, data in read_members(stream, path, limit, start):
        match = MEMBER.fullmatch(member)
        stem = None if match is None or HIDDEN.search(member) else match[1]
        started = first.meet(offset, stem) or start == 0
        if last is not None and last.meet(offset, stem):
            break
        if not started:
            continue
        if match is None or stem is None:
            left_out.count(f"files without an ending, hidden: {member[:40]}", 1)
            continue
        ending = match[2].lower()
        full = stem != name or ending in members or len(members) >= MAX_SAMPLE_MEMBERS
        if members and full:
            assert name is not None
            yield name, members
            members = {}
        name = stem
        members[ending] = (member, data)
    if members:
        assert name is not None
        yield name, members


def _samples(members: Members, left_out: LeftOut) -> Iterator[tuple[str | None, Members]]:
    """(ending of the image, members) of each sample among members of one name.

    `x.jpg` with `x.mask.png` is one sample and a part that is left out; `x 1.0.jpg`, `x 1.0.txt`,
    `x 1.1.jpg` and `x 1.1.txt` are two, whose name has a dot.
    """
    images = [ending for ending in members if f".{ending}".endswith((*IMAGES, *UNREAD))]
    images.sort(key=lambda ending: f".{ending}".endswith(UNREAD))  # what is read comes first
    if len(images) <= 1:
        yield (images[0] if images else None), members
        return
    plain = [ending for ending in images if "." not in ending]
    rows = [ending for ending in images if _has_own_text(ending, members)] if plain else images
    rows = list(dict.fromkeys([*plain[:1], *rows]))
    for ending in images:
        if ending not in rows:
            left_out.count(f"further images of a sample: .{ending}", 1)
    own = {ending: _own_text(ending, members) for ending in rows if "." in ending}
    taken = {text for texts in own.values() for text in texts}
    for ending in rows:
        mine = own.get(ending, set())
        yield (
            ending,
            {
                name: member
                for name, member in members.items()
                if name == ending or name in mine or (name not in taken and name not in images)
            },
        )


def _own_text(ending: str, members: Members) -> set[str]:
    own = ending.rpartition(".")[0]
    names = {f"{own}.{last}" for last in (*TEXT_ENDINGS, JSON_ENDING)}
    return names.intersection(members)


def _has_own_text(ending: str, members: Members) -> bool:
    return "." in ending and bool(_own_text(ending, members))


def _limit(name: str) -> int:
    return MAX_IMAGE_BYTES if name.lower().endswith(IMAGES) else MAX_TEXT_BYTES


def _limit_of_texts(name: str) -> int:
    return -1 if name.lower().endswith(IMAGES) else MAX_TEXT_BYTES


def _named(name: str, image: str | None) -> str:
    return name if image is None else f"{name}.{image}"


def _row(
    path: str,
    name: str,
    image: str | None,
    members: Members,
    source: SourceConfig,
    extra: Sequence[str],
    left_out: LeftOut,
) -> dict[str, Any]:
    member, data = members[image] if image is not None else (name, None)
    row = new_row(f"{path}::{member}", source)
    if image is None:
        endings = ", ".join(list(members)[:8])
        return row | {"reason": "missing_file", "detail": f"no image among {endings}"}
    if f".{image}".endswith(UNREAD):
        last = image.rpartition(".")[2]
        return row | {"reason": "not_an_image", "detail": f"the format .{last} is not read"}
    row["data"] = data
    if data is None:
        row |= {"reason": "too_large", "detail": f"more than {MAX_IMAGE_BYTES} bytes"}
    beside = {ending: found[1] for ending, found in members.items() if ending != image}
    found = look_beside(image, beside, source, extra)
    row["columns"] = found.columns
    left_out.add_fields(found.left_out)
    set_texts(row, found.captions, found.complaint)
    return row
