"""Filters: each a small function over one row and its threshold, which says what is wrong or None.
What needs no image runs before the download, the others once an image is decoded."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from caft.captions import JOINER
from caft.errors import ConfigError
from caft.extras import how_to_install
from pipelines.data.config import ColumnFilter, FilterConfig

Row = dict[str, Any]
SHOWN_CHARS = 80  # of a text in a reject's detail
UNDETERMINED = "und"  # the language of a text of which no language is likelier than not
LANGUAGE_CONFIDENCE = 0.5


class Filter(NamedTuple):
    """A reject reason, the function that finds it, and the field of FilterConfig it reads."""

    reason: str
    find: Callable[[Row, Any], str | None]
    field: str


def apply_filters(row: Row, config: FilterConfig, filters: Sequence[Filter]) -> None:
    """Set `reason` and `detail` of the first filter that refuses the row, if it has no reason yet.

    Args:
        filters: BEFORE_DOWNLOAD, for rows with `captions` and `columns`, or AFTER_DECODE, for rows
            with `original_width`, `original_height` and `contrast`.
    """
    if row["reason"] is not None:
        return
    for reason, find, field in filters:
        threshold = getattr(config, field)
        if threshold is None or threshold in ((), {}):
            continue
        detail = find(row, threshold)
        if detail is not None:
            row["reason"], row["detail"] = reason, detail
            return


def check_filters(config: FilterConfig) -> None:
    """Find out before anything starts whether the filters can run.

    Raises:
        ConfigError: filters.languages names an unknown language, or its library is missing.
    """
    if not config.languages:
        return
    known = _language_identifier().labels
    for code in config.languages:
        if code not in known:
            nearest = difflib.get_close_matches(code.lower()[:2], known, n=3, cutoff=0)
            raise ConfigError(
                f"filters.languages: no language code {code!r}; the nearest of ISO 639-1 are "
                f"{', '.join(nearest)}"
            )


def longest_caption(captions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentences of the caption with the most characters, the first of several."""
    return list(max((caption["sentences"] for caption in captions), key=_chars, default=[]))


def caption_too_short(row: Row, min_chars: int) -> str | None:
    chars = _chars(longest_caption(row["captions"]))
    return f"{chars} characters" if chars < min_chars else None


def too_few_sentences(row: Row, min_sentences: int) -> str | None:
    count = sum(len(caption["sentences"]) for caption in row["captions"])
    return f"{count} sentences" if count < min_sentences else None


def repeats_itself(row: Row, max_share: float) -> str | None:
    """Sentences count as equal whatever their case and spaces."""
    for caption in row["captions"]:
        seen: set[str] = set()
        repeated = []
        for sentence in caption["sentences"]:
            plain = " ".join(sentence.casefold().split())
            if plain in seen:
                repeated.append(sentence)
            seen.add(plain)
        total = len(caption["sentences"])
        if repeated and len(repeated) / total > max_share:
            return (
                f"{len(repeated)} of {total} sentences repeat, such as {_shown(repeated[0])} "
                f"({caption['source']})"
            )
    return None


def matches_template(row: Row, patterns: Sequence[str]) -> str | None:
    for caption in row["captions"]:
        text = JOINER.join(caption["sentences"])
        for pattern in patterns:
            if match := re.search(pattern, text):
                return f"{pattern!r} matches {_shown(match[0])} ({caption['source']})"
    return None


def in_other_language(row: Row, languages: Sequence[str]) -> str | None:
    """Judged by the longest caption; one that is too short to tell passes."""
    text = JOINER.join(longest_caption(row["captions"]))
    language, _ = _language_identifier().classify(text)
    return None if language in (*languages, UNDETERMINED) else f"{language}: {_shown(text)}"


def column_refused(row: Row, columns: Mapping[str, ColumnFilter]) -> str | None:
    for name, wanted in columns.items():
        value = row["columns"].get(name)
        if value is None or not str(value).strip():
            continue
        complaint = _complaint(value, wanted)
        if complaint is not None:
            return f"{name}: {complaint}"
    return None


def too_small(row: Row, min_side_px: int) -> str | None:
    width, height = row["original_width"], row["original_height"]
    return _size(row) if min(width, height) < min_side_px else None


def too_long(row: Row, max_aspect_ratio: float) -> str | None:
    short, long = sorted((row["original_width"], row["original_height"]))
    return _size(row) if long > max_aspect_ratio * short else None


def nearly_constant(row: Row, min_contrast: float) -> str | None:
    contrast = row["contrast"]
    return f"contrast {contrast:.2f}" if contrast < min_contrast else None


BEFORE_DOWNLOAD = (
    Filter("short_caption", caption_too_short, "min_caption_chars"),
    Filter("few_sentences", too_few_sentences, "min_sentences"),
    Filter("repeated_text", repeats_itself, "max_repeated_share"),
    Filter("templated_text", matches_template, "refuse_patterns"),
    Filter("language", in_other_language, "languages"),
    Filter("column", column_refused, "columns"),
)
AFTER_DECODE = (
    Filter("too_small", too_small, "min_side_px"),
    Filter("aspect_ratio", too_long, "max_aspect_ratio"),
    Filter("near_constant", nearly_constant, "min_contrast"),
)
FILTERS = BEFORE_DOWNLOAD + AFTER_DECODE


def _complaint(value: Any, wanted: ColumnFilter) -> str | None:
    text = f"{value:.15g}" if isinstance(value, float) else str(value).strip()
    if text in wanted.refuse:
        return f"{_shown(text)} is refused"
    if wanted.min is None and wanted.max is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return f"{_shown(text)} is no number"
    if math.isnan(number):  # how many lists spell a missing value
        return None
    if wanted.min is not None and number < wanted.min:
        return f"{text} is below {wanted.min:g}"
    if wanted.max is not None and number > wanted.max:
        return f"{text} is above {wanted.max:g}"
    return None


@functools.cache
def _language_identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # optional
    except ImportError:
        raise ConfigError(
            f"filters.languages: needs the package py3langid; {how_to_install('language')}"
        ) from None
    return LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=LANGUAGE_CONFIDENCE
    )


def _chars(sentences: Sequence[str]) -> int:
    return len(JOINER.join(sentences))


def _size(row: Row) -> str:
    return f"{row['original_width']} x {row['original_height']} pixels"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…")
