"""Which of the files beside an image hold its captions, and what they say.
What tars and folders have in common: files of one name are one sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.data.config import CaptionKind, SourceConfig
from pipelines.data.sources.columns import caption_kinds, caption_source, is_known_caption
from pipelines.data.sources.encodings import decode
from pipelines.data.sources.rows import TEXT_NAME

TEXT_ENDINGS = ("txt", "text", "caption", "captions", "cap")
JSON_ENDING = "json"
LISTED = 6


class Beside(NamedTuple):
    """What lies beside an image: source, kind and cell of each caption, other columns, what there
    is instead of captions, and the fields that are left out."""

    captions: list[tuple[str, CaptionKind, Any]]
    columns: dict[str, str]
    complaint: str | None
    left_out: dict[str, Any]


def look_beside(
    image: str,
    files: Mapping[str, bytes | None],
    source: SourceConfig,
    extra: Sequence[str],
) -> Beside:
    """The captions and columns of an image.

    Args:
        image: the image's ending, such as `jpg` or `input.jpg`.
        files: ending -> bytes of the other files of its name; None: too large to be read.
    """
    own = image.rpartition(".")[0]
    fields, complaint = _fields(files.get(_choose(files, (JSON_ENDING,), own) or ""), source)
    cells: dict[str, Any] = dict(fields)
    texts = [ending for ending in files if _last(ending) in TEXT_ENDINGS]
    chosen = _choose(files, TEXT_ENDINGS, own)
    configured = source.caption_columns or {}
    for ending in texts:
        name = ending.rpartition(".")[0].removeprefix(f"{own}.") or ending
        if ending == chosen and name not in configured:
            name = TEXT_NAME
        elif not is_known_caption(name) and name not in configured:
            continue
        data = files[ending]
        cells[name] = None if data is None else decode(data, source)
    kinds = caption_kinds(source, cells)
    ordered = sorted(kinds, key=lambda name: name == TEXT_NAME)  # it may repeat what another says
    columns = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name in extra
        if (value := fields.get(name)) is not None
    }
    captions = [(caption_source(name), kinds[name], cells[name]) for name in ordered]
    if not captions:
        complaint = complaint or _nothing(files, image, fields, texts)
    unused = {name: value for name, value in fields.items() if name not in kinds | columns}
    return Beside(captions, columns, complaint, unused)


def _choose(files: Mapping[str, Any], wanted: Sequence[str], own: str) -> str | None:
    """The ending of the file that belongs to an image: of its own name, plain, or the only one."""
    for last in wanted:
        for ending in (f"{own}.{last}" if own else last, last):
            if ending in files:
                return ending
    others = [ending for ending in files if _last(ending) in wanted]
    return others[0] if len(others) == 1 else None


def _fields(data: bytes | None, source: SourceConfig) -> tuple[dict[str, Any], str | None]:
    """The object that a .json holds, and what is wrong with it; a list or a text is captions."""
    if data is None:
        return {}, None
    try:
        value = json.loads(decode(data, source), strict=False)
    except (ValueError, RecursionError) as error:
        return {}, f"its .json is no JSON: {str(error)[:100]}"
    if isinstance(value, (list, str)):
        value = {"captions": value}
    return (value, None) if isinstance(value, dict) else ({}, "its .json holds no object")


def _nothing(
    files: Mapping[str, Any], image: str, fields: dict[str, Any], texts: Sequence[str]
) -> str | None:
    """What lies beside an image that has no caption."""
    if fields:
        names = ", ".join(list(fields)[:LISTED])
        return f"no caption in its .json, whose fields are {names}"
    if len(texts) > 1:
        return f"several texts beside its .{image}, none of which is known: {_listed(texts)}"
    if texts:
        return f"its .{texts[0]} is none of caption_columns"
    other = [ending for ending in files if ending != image]
    has = f"; it has {_listed(other)}" if other else ""
    return f"no .txt or .json beside its .{image}{has}"


def _listed(endings: Sequence[str]) -> str:
    shown = ", ".join(f".{ending}" for ending in endings[:LISTED])
    return shown if len(endings) <= LISTED else f"{shown} and {len(endings) - LISTED} more"


def _last(ending: str) -> str:
    return ending.rpartition(".")[2]
