"""Captions into sentences, and sentences into the chunks that evaluation reads.
First thing that happens to text in the data stage; training samples are cut elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

REFERENCE_MIN_CHARS = 3  # training data of the reference drops shorter pieces
JOINER = ". "
MAX_CHUNK_SENTENCES = 3

# Never the end of a sentence, whatever follows.
_TITLES = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "mt",
        "sr",
        "jr",
        "gen",
        "col",
        "capt",
        "lt",
        "sgt",
        "rev",
        "hon",
        "messrs",
        "mme",
        "mlle",
        "hr",
        "fr",
        "sra",
        "dra",
        "ave",
        "blvd",
        "rd",
        "no",
        "nos",
        "nr",
        "vol",
        "fig",
        "figs",
        "pp",
        "ed",
        "eds",
        "ca",
        "approx",
        "vs",
        "cf",
        "e.g",
        "i.e",
        "z.b",
        "d.h",
        "u.a",
        "bzw",
        "p.ej",
        "inc",
        "ltd",
        "co",
        "corp",
        "dept",
        "est",
    ]
)
# The end of a sentence only where a usual beginning follows.
_UNITS = frozenset(
    [
        "etc",
        "al",
        "a.m",
        "p.m",
        "in",
        "ft",
        "oz",
        "lb",
        "lbs",
        "hr",
        "hrs",
        "min",
        "sec",
        "cm",
        "mm",
        "km",
        "kg",
        "u.s",
        "u.k",
    ]
)
_BEGINNINGS = frozenset(
    [
        "the",
        "a",
        "an",
        "it",
        "its",
        "in",
        "on",
        "at",
        "there",
        "this",
        "that",
        "these",
        "those",
        "he",
        "she",
        "they",
        "we",
        "i",
        "his",
        "her",
        "their",
        "some",
        "one",
        "two",
        "several",
        "many",
        "most",
        "both",
        "behind",
        "beside",
        "above",
        "below",
        "to",
        "from",
        "with",
        "under",
        "over",
    ]
)

_BULLET = re.compile(
    r"^\s*(?:[-*\u2022\u2023\u25aa\u25cf\u2013\u2014]+|\(?\d{1,2}[.)]|\(?[a-zA-Z][)])\s+"
)
_WIDE_END = re.compile("(?<=[\u3002\uff01\uff1f\u0964\u061f])")  # CJK, Devanagari, Arabic: no space
_END = re.compile(
    r"(?P<mark>[.!?\u2026]+)(?P<close>[\"'\u201d\u2019\u00bb)\]]*)"
    r"(?P<gap>\s+|(?=[A-Z\u00c0-\u00de]))"
)
_URL_LIKE = re.compile(r"(?:https?://|www\.)\S*$|\S+/\S*$|\S+@\S*$")
_FINAL_STOP = re.compile(r"(?<!\.)\.$|\u3002$")


def split_sentences(
    text: str, mode: Literal["default", "reference"] = "default", min_chars: int = 1
) -> list[str]:
    """Sentences of a caption, in order, without a final full stop.

    `default` keeps abbreviations, decimals, initials, ellipses and URLs whole, takes every line
    and bullet as its own sentence, and knows the full stops of several scripts. `reference` is
    the published rule: cut at every ".", newline and "</s>".

    Args:
        min_chars: shorter pieces are dropped (the reference's training data: 3).
    """
    if mode == "reference":
        pieces = re.split(r"\.|\n|</s>", text)
    else:
        lines = text.replace("</s>", "\n").splitlines()
        pieces = [piece for line in lines for piece in _split_line(_BULLET.sub("", line))]
    stripped = [piece.strip() for piece in pieces]
    return [piece for piece in stripped if piece and len(piece) >= min_chars]


def even_chunks(sentences: Sequence[str], chunks: int = 4) -> list[str]:
    """The deterministic chunks of evaluation (model section 4).

    Up to `chunks` sentences: sentence i mod n. Up to 3 per chunk: as even as can be, the first
    ones larger. More: 3, 3, 3, the rest.

    Raises:
        ValueError: no sentence at all.
    """
    count = len(sentences)
    if count == 0:
        raise ValueError("a caption without a sentence has no chunks")
    if count <= chunks:
        return [sentences[n % count] for n in range(chunks)]
    if count <= MAX_CHUNK_SENTENCES * chunks:
        sizes = [count // chunks + (n < count % chunks) for n in range(chunks)]
    else:
        sizes = [MAX_CHUNK_SENTENCES] * (chunks - 1) + [count - MAX_CHUNK_SENTENCES * (chunks - 1)]
    parts, start = [], 0
    for size in sizes:
        parts.append(JOINER.join(sentences[start : start + size]))
        start += size
    return parts


def _split_line(line: str) -> list[str]:
    return [
        _FINAL_STOP.sub("", sentence.strip())
        for part in _WIDE_END.split(line)
        for sentence in _split_spaced(part)
        if re.search(r"\w", sentence)
    ]


def _split_spaced(text: str) -> list[str]:
    """Cut at the marks that end a sentence; `text` holds no line break."""
    lower_case = text[:1].islower()  # a caption that begins without a capital uses none
    pieces, start = [], 0
    for match in _END.finditer(text):
        before, after = text[start : match.start()], text[match.end() :]
        if _ends_sentence(before, match, after, lower_case):
            pieces.append(text[start : match.end("close")])
            start = match.end()
    return [*pieces, text[start:]]


def _ends_sentence(before: str, match: re.Match[str], after: str, lower_case: bool) -> bool:
    if not after.strip() or not before.strip():
        return False
    word = before.split()[-1].lstrip("(\"'\u201c\u2018\u00ab[")
    following = after.split()[0].strip("\"'\u201c\u201d\u2018\u2019\u00ab([,;:.")
    if not match["gap"]:  # "a dog.The cat": only between whole words, never inside an address
        return bool(len(word) > 1 and word[-1].islower() and not _URL_LIKE.search(before + "."))
    mark = match["mark"]
    if mark == ".":
        name = word.lower()
        if name in _TITLES or re.fullmatch(r"[A-Z]", word):
            return False
        if name in _UNITS or re.fullmatch(r"(?:\w\.)+\w", word):
            return following.lower() in _BEGINNINGS and following[:1].isupper()
    if following[:1].islower():
        return lower_case and set(mark) <= {"."} and len(mark) == 1
    return True
