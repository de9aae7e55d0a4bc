"""Which columns of a list hold URLs and captions: named in the configuration, or known by name.
Every reader of rows with names asks here, so that all kinds of lists follow the same rules."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from caft.errors import DataError
from pipelines.data.config import CaptionKind, SourceConfig

# DreamLIP's published columns: seven captions of one image.
DREAMLIP_URL_COLUMN = "Image Path"
DREAMLIP_CAPTION_COLUMNS: dict[str, CaptionKind] = {
    "raw_caption": "raw",
    "shortIB_captions": "short",
    "longIB_captions": "long",
    "shortSV_captions": "short",
    "longSV_captions": "long",
    "shortLLA_captions": "short",
    "longLLA_captions": "long",
}

# Names as `_plain` writes them; the first that a list has is its URL column.
URL_NAMES = (
    "url",
    "image_url",
    "img_url",
    "jpg_url",
    "imageurl",
    "photo_url",
    "photo_image_url",
    "original_url",
    "image_path",
    "img_path",
    "file_name",
    "filename",
    "filepath",
    "image",
    "image_file",
    "image_name",
    "image_filename",
    "image_filepath",
    "image_src",
    "image_link",
    "img_name",
    "img_file",
    "img",
    "urls",
    "src",
    "file",
    "path",
)
CAPTION_NAMES = {
    "caption",
    "captions",
    "text",
    "texts",
    "txt",
    "alt",
    "alt_text",
    "alttext",
    "description",
    "descriptions",
    "recaption",
    "sentences",
    "sentence",
    "raw",
    "comment",
    "comments",
    "conversations",
    "messages",
}
CONVERSATIONS = ("conversations", "messages")  # the first answer describes the image
# Names that a caption may hide behind: where they are left out, the report says so.
CAPTION_LIKE = re.compile(r"capt|text|desc|\balt|title|prompt|sentence|comment|phrase|summary")
MOST_NAMES = 1000  # of what is left out


@dataclass(frozen=True)
class Columns:
    """The columns of a list that count."""

    url: str
    captions: dict[str, CaptionKind]
    extra: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Each column once, the URL column first."""
        return list(dict.fromkeys([self.url, *self.captions, *self.extra]))


class LeftOut:
    """Columns and fields that a source has and that are not read.

    Attributes:
        rows: name -> rows that hold something, for those that may be captions; else None.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int | None] = {}

    def add(self, names: Sequence[str], columns: Columns) -> list[str]:
        """Take note of a list's columns; returns those whose rows are to be counted."""
        used = set(columns.names)
        unused = [name for name in dict.fromkeys(names) if name and name not in used]
        counted = [name for name in unused if is_caption_like(name)]
        for name in unused:
            self.rows.setdefault(name, 0 if name in counted else None)
        return [name for name in counted if names.count(name) == 1]

    def add_fields(self, fields: Mapping[str, object]) -> None:
        """Take note of fields of one row that are not used, each with what it holds."""
        for name, value in fields.items():
            if name not in self.rows and len(self.rows) >= MOST_NAMES:
                continue  # such as objects whose names are numbers of images
            if not is_caption_like(name):
                self.rows.setdefault(name, None)
            elif value:
                self.count(name, 1)

    def count(self, name: str, rows: int) -> None:
        self.rows[name] = (self.rows.get(name) or 0) + rows


def choose_columns(
    source: SourceConfig, path: str, names: Sequence[str], extra: Sequence[str]
) -> Columns:
    """The columns to read of a list that has `names`; of `extra`, those that are there.

    Raises:
        DataError: no URL column or no caption column; names the nearest there is.
    """
    columns = Columns(
        _url_column(source, path, names),
        caption_columns(source, path, names),
        tuple(name for name in extra if name in names),
    )
    for name in columns.names:
        if names.count(name) > 1:
            raise DataError(f"{path}: two columns are named '{name}'; rename one of them")
    return columns


def caption_columns(
    source: SourceConfig, path: str, names: Sequence[str]
) -> dict[str, CaptionKind]:
    """Caption column -> kind, of those that are there; none where captions are joined.

    Raises:
        DataError: there is none, and the source needs some.
    """
    found = caption_kinds(source, names)
    if found or not source.needs_captions:
        return found
    if source.caption_columns is None:
        raise DataError(
            f"{path}: no caption column; columns are: {_list(names)}; "
            "name them in caption_columns, such as {alt_text: raw}"
        )
    raise DataError(
        f"{path}: no caption column; looked for {', '.join(source.caption_columns)}"
        f"{_suggestion(source.caption_columns, names)}; columns are: {_list(names)}; "
        "name them in caption_columns"
    )


def caption_kinds(source: SourceConfig, names: Iterable[str]) -> dict[str, CaptionKind]:
    """Those of `names` that are caption columns, with their kinds; none where captions are
    joined."""
    if source.captions_from is not None:
        return {}
    if source.caption_columns is not None:
        present = set(names)
        return {name: kind for name, kind in source.caption_columns.items() if name in present}
    return {name: _kind(name) for name in names if is_known_caption(name)}


def _url_column(source: SourceConfig, path: str, names: Sequence[str]) -> str:
    if source.url_column is not None:
        if source.url_column in names:
            return source.url_column
        raise DataError(
            f"{path}: no URL column '{source.url_column}'"
            f"{_suggestion([source.url_column], names)}; columns are: {_list(names)}; "
            "name the right one in url_column"
        )
    by_plain_name: dict[str, str] = {}
    for name in names:
        by_plain_name.setdefault(_plain(name), name)
    for known in URL_NAMES:
        if known in by_plain_name:
            return by_plain_name[known]
    raise DataError(
        f"{path}: no URL column{_suggestion([DREAMLIP_URL_COLUMN, *URL_NAMES], names)}; "
        f"columns are: {_list(names)}; name the right one in url_column"
    )


def is_known_url(name: str) -> bool:
    return _plain(name) in URL_NAMES


def is_known_caption(name: str) -> bool:
    plain = re.sub(r"_?\d{1,2}$", "", _plain(name))  # caption_1 .. caption_5
    return plain in CAPTION_NAMES or plain.endswith(("_caption", "_captions", "_text"))


def is_caption_like(name: str) -> bool:
    return CAPTION_LIKE.search(_plain(name)) is not None


def caption_source(name: str) -> str:
    """What a caption's `source` says of the column it comes from."""
    return "sharegpt4v" if _plain(name) in CONVERSATIONS else name.removesuffix("_captions")


def _kind(name: str) -> CaptionKind:
    plain = _plain(name)
    if plain.startswith("short"):
        return "short"
    long = plain.startswith(("long", "detailed", "dense")) or plain in CONVERSATIONS
    return "long" if long else "raw"


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _suggestion(wanted: Iterable[str], names: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the name that is nearest to one of `wanted`, if any is near."""
    by_lower = {name.lower(): name for name in names}
    for name in wanted:
        near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
        if near:
            return f"; did you mean '{by_lower[near[0]]}'?"
    return ""


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:30])
    return shown if len(names) <= 30 else f"{shown} and {len(names) - 30} more"
