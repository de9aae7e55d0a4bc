"""Tells from its first bytes how a list or a text is encoded, and makes UTF-8 of it on the way.
Every reader of text asks here: lists of all kinds, and members of tars and folders."""

from __future__ import annotations

import codecs
import re
from typing import Any

import pyarrow as pa
from charset_normalizer import from_bytes

from caft.errors import DataError
from pipelines.data.config import SourceConfig

UTF8 = "utf-8"
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Encodings that lists come in, the likelier of equally plausible ones first.
KNOWN = (
    "cp1252",
    "cp1254",
    "cp1250",
    "gb18030",
    "cp932",
    "euc_jp",
    "big5",
    "cp949",
    "cp1251",
    "koi8_r",
    "cp1253",
    "cp1255",
    "cp1256",
    "cp874",
    "mac_roman",
)
CHECKED_LINES = 1000
LEAST_DAMAGED = 3  # lines: fewer may be damage in a list that is UTF-8
GUESSED_BYTES = 20_000
NUL_SHARE = 0.2  # of the bytes: text of two bytes a character


def find_encoding(head: bytes, source: SourceConfig, path: str) -> str:
    """The encoding of a list that starts with `head`: as configured, as marked, or UTF-8.

    Raises:
        DataError: more lines than `max_bad_share` are not UTF-8; names the encoding to set.
    """
    if source.encoding is not None:
        return source.encoding
    known = marked(head)
    if known is not None:
        return known
    end = b"\n" if b"\n" in head else b"\r"
    lines = head.split(end)[: CHECKED_LINES + 1]
    lines = lines[:-1] or lines  # the last may be cut
    damaged = [n for n, line in enumerate(lines) if not _is_utf8(line)]
    if too_many(len(damaged), sum(not line.isascii() for line in lines), len(lines), source):
        first = head.index(lines[damaged[0]]) + _first_damage(lines[damaged[0]])
        guess = guess_encoding(end.join(lines[n] for n in damaged))
        raise DataError(
            f"{path}: {len(damaged):,} of its first {len(lines):,} lines are not UTF-8, the first "
            f"at byte {first:,} (0x{head[first]:02x}); "
            + (f"set encoding: {guess}" if guess else "set its encoding, or write it as UTF-8")
        )
    return UTF8


def too_many(bad: int, of: int, rows: int, source: SourceConfig) -> bool:
    """Whether so many of some rows are bad that the list is not what it was taken for.

    Args:
        of: rows that could be bad in this way at all.
    """
    if bad == 0:
        return False
    return bad == rows or (
        bad >= LEAST_DAMAGED and (bad > source.max_bad_share * rows or 2 * bad > of)
    )


def to_utf8(
    stream: pa.NativeFile, encoding: str, carriage_returns: bool = False
) -> pa.NativeFile | pa.TransformInputStream:
    """A stream's text as UTF-8 without a mark of byte order; what is no text becomes U+FFFD.

    Args:
        carriage_returns: lines end with CR alone, which becomes LF.
    """
    decoder = codecs.getincrementaldecoder(encoding)("replace")

    def recode(data: Any) -> bytes:
        text = decoder.decode(memoryview(data))
        if carriage_returns:
            text = text.replace("\r", "\n")
        return text.encode("utf-8", "replace")

    return pa.TransformInputStream(stream, recode)


def head_as_utf8(head: bytes, encoding: str) -> bytes:
    """The first bytes of a stream as `to_utf8` gives them; a character that is cut is left out."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    return decoder.decode(head).encode("utf-8", "replace")


def decode(data: bytes, source: SourceConfig) -> str:
    """A text or a JSON document of its own, such as a member of a tar."""
    encoding = source.encoding or marked(data) or UTF8
    return data.decode(encoding, "replace").removeprefix("\ufeff")


def guess_encoding(data: bytes) -> str | None:
    """The encoding that makes the most plausible text of bytes that are not UTF-8."""
    data = data[:GUESSED_BYTES]
    scores: dict[str, float] = {}
    for name in KNOWN:
        text = data.decode(name, "replace")
        scores[name] = _plausibility(text, name)
    best = max(KNOWN, key=lambda name: scores[name])
    if scores[best] > 0.5:
        return best
    match = from_bytes(data).best()
    return match.encoding if match is not None else None


def marked(head: bytes) -> str | None:
    """The encoding that the first bytes of a file tell, if they do."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    start = head[:4096]
    if len(start) < 4 or start.count(0) < NUL_SHARE * len(start):
        return None
    little, big = start[1::2].count(0), start[::2].count(0)
    if max(little, big) < 4 * min(little, big) + 1:
        return None
    name = "utf-16-le" if little > big else "utf-16-be"
    try:
        codecs.getincrementaldecoder(name)("strict").decode(start)
    except UnicodeDecodeError:
        return None
    return name


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _first_damage(line: bytes) -> int:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


_LATIN = "a-zà-öø-ÿßœšž"
_LETTERS = {
    "cp1252": _LATIN,
    "cp1250": "ąćęłńóśźżáčďéěíňřšťúůýžőűäöüßăâîșț",
    "cp1254": "çğıöşüâîûéàèêôßäñ",
    "mac_roman": _LATIN,
    "cp1251": "а-яёіїєґў",
    "koi8_r": "а-яё",
    "cp1253": "α-ωά-ώ",
    "cp1255": "א-ת",
    "cp1256": "ء-ي",
    "cp874": "ก-ฺเ-๛",
}
# Multi-byte encodings by the lead bytes of their frequent characters, in their plain form.
_FREQUENT = {
    "gb18030": ("gb2312", 0xB0, 0xD7),
    "big5": ("big5", 0xA4, 0xC6),
    "cp932": ("euc_jp", 0xB0, 0xCF),
    "euc_jp": ("euc_jp", 0xB0, 0xCF),
    "cp949": ("euc_kr", 0xB0, 0xC8),
}
_KANA = re.compile("[\u3041-\u30ff]")
_MARKS = re.compile("[“”‘’–—…•€£°©®™«»´¡¿\xa0。，、：；！？（）「」《》・～]")
_LATIN_KINDS = ("cp1252", "cp1250", "cp1254", "mac_roman")


def _plausibility(text: str, encoding: str) -> float:
    """How much the characters beyond ASCII look like text that this encoding is for, up to 1."""
    total, count, run = 0.0, 0, 0
    letters = re.compile(f"[{_LETTERS[encoding]}]") if encoding in _LETTERS else None
    before = " "
    for character in text:
        if character < "\x80":
            run, before = 0, character
            continue
        count, run = count + 1, run + 1
        if character == "\ufffd":
            total -= 2
        elif _MARKS.match(character):
            total += 0.8
        elif letters is not None:
            total += _letter_weight(character, before, run, letters, encoding)
        else:
            total += _frequency(character, encoding) - 0.5 * (before.isascii() and before.isalpha())
        before = character
    return total / count if count else 0.0


def _letter_weight(
    character: str, before: str, run: int, letters: re.Pattern[str], encoding: str
) -> float:
    small = character.lower()
    if not letters.match(small):
        return 0.0
    if character != small and before.islower():
        return -0.5  # a capital inside of a word
    if encoding in _LATIN_KINDS:
        return 0.1 if run > 2 else 0.9 - 0.4 * (encoding == "cp1252" and small in "ðýþ")
    if before.isascii() and before.isalpha():
        return -0.5
    return 0.92 if encoding == "cp1255" else 0.9  # it has fewer letters: less by chance


def _frequency(character: str, encoding: str) -> float:
    plain, low, high = _FREQUENT[encoding]
    if _KANA.match(character):
        return 1.0 if plain == "euc_jp" else 0.2
    try:
        lead = character.encode(plain)[0]
    except UnicodeEncodeError:
        return 0.2
    if not low <= lead <= high:
        return 0.4
    return 0.93 if encoding == "cp949" else 0.9  # fewer again
