"""What a caption cell holds, however it is written, and what becomes of a text in it.
Every reader of lists, tars, folders and Parquet asks here: equal rows give equal captions."""

from __future__ import annotations

import ast
import html
import json
import pickletools
import re
from collections.abc import Iterable
from html.entities import html5
from typing import Any

MAX_DEPTH = 8  # lists within lists
MAX_LITERAL_CHARS = 2**20  # of a spelled list that only Python's own parser reads
MAX_LITERAL_BRACKETS = 2_000
MAX_ENTITY_PASSES = 3  # `&amp;amp;` is common on the web
# Fields of an object that hold a text, the first that is there counts.
TEXT_FIELDS = (
    "caption",
    "captions",
    "text",
    "texts",
    "raw",
    "sentence",
    "sentences",
    "phrase",
    "description",
    "value",
    "content",
    "alt_text",
    "alt",
    "string",
)
SPEAKER_FIELDS = ("from", "role")
ANSWERING = ("gpt", "assistant", "model", "bot", "chatgpt")
# A cell or list item that is one of these, whatever its case, stands for no caption.
NOTHING = frozenset(
    ("nan", "null", "none", "n/a", "#n/a", "na", "<na>", "nat", "nil", "undefined", r"\n", "-")
)

# Notes on a row's texts, counted for each source.
DAMAGED = "damaged"  # holds U+FFFD: bytes of another encoding
REPAIRED = "repaired"  # control characters, NUL, marks of byte order, halves of pairs taken out
ENTITIES = "entities"  # HTML entities decoded
CUT = "cut"  # longer than captions.max_chars

_PAIR, _HALF = re.compile("[\ud800-\udbff][\udc00-\udfff]"), re.compile("[\ud800-\udfff]")
_ENTITY = re.compile(r"&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_JSON = json.JSONDecoder(strict=False)  # line breaks inside of texts do no harm
_BREAKS = str.maketrans(dict.fromkeys("\x0b\x0c\x1c\x1d\x85\u2028\u2029", "\n"))
_CONTROL = re.compile("[\0-\x08\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufeff\ufffe\uffff\ud800-\udfff]")
_ITEM = re.compile(
    r"""\s*(?:[uUbB]?(?:'([^'\\]*(?:\\.[^'\\]*)*)'|"([^"\\]*(?:\\.[^"\\]*)*)")"""
    r"""|(None|nan|NaN|null|True|False|\.\.\.|-?\d[\d.eE+-]*))\s*""",
    re.DOTALL,
)
_ARRAY = re.compile(r"(?:np\.|numpy\.)?array\((.*?)(?:,\s*dtype=[^()]*)?\s*\)", re.DOTALL)
_BETWEEN_ITEMS = re.compile(r"""['"]\s*,\s*['"]""")
_PICKLED_TEXT = re.compile(r"""^b?['"]?(?:\\x80\\x0[2-5]|\x80[\x02-\x05])""")


def cell_texts(value: Any, notes: set[str], complaints: list[str] | None = None) -> list[str]:
    """The captions that a cell of a list or a field of a JSON object holds, fit to be stored.

    Args:
        value: a text, a text that spells a list, a list, an object with a text field, bytes, or
            any nesting of them.
        notes: DAMAGED, REPAIRED and ENTITIES are added where they are so of a text.
        complaints: what the cell holds that is no text, in words.
    """
    found = []
    for raw in _spelled_texts(cell_strings(value, complaints), complaints):
        text = clean_text(raw, notes)
        if text:
            found.append(text)
    return found


def cell_strings(value: Any, complaints: list[str] | None = None) -> list[str]:
    """The texts in a cell as they came: lists flattened, objects replaced by their text field.

    A text that spells a list stays one text, and Arrow can hold each: a half of a surrogate pair
    becomes NUL, which `clean_text` takes out and counts.
    """
    if type(value) is list and all(type(item) is str for item in value):  # as in most lists
        return [item if item.isascii() else _storable(item) for item in value]
    strings: list[str] = []
    _collect(value, strings, [] if complaints is None else complaints, 0)
    return strings


def clean_text(text: str, notes: set[str]) -> str:
    """A text as a caption holds it; empty if it stands for none.

    HTML entities are decoded, control characters but line breaks and tabs taken out. A text with
    U+FFFD is damaged and noted as such; it is for the caller to refuse its row.
    """
    if not text.isprintable() or "&" in text or "\ufffd" in text:  # few are, and it is fast
        text = _clean_odd(text, notes)
    text = text.strip()
    return "" if len(text) <= 9 and text.casefold() in NOTHING else text


def spelled(cell: str) -> Any:
    """The list or object that a text spells in JSON, Python or NumPy's way; None: plain text."""
    text = cell.strip()
    if len(text) < 2 or text.startswith("[" * MAX_DEPTH):
        return None
    ends = text[0] + text[-1]
    if ends == '""' and text[1] in "[{":
        inner = _from_json(text)  # a list that was written as JSON twice
        return spelled(inner) if isinstance(inner, str) else None
    if ends == "[]":
        return _spelled_list(text)
    if ends == "{}":
        value = _from_json(text)
        if not isinstance(value, dict):
            value = _scan(text[1:-1]) or _from_python(text)
        return value if isinstance(value, (dict, list)) else None
    if ends == "()":
        value = _scan(text[1:-1])
        return value if value is not None and "," in text and text[1] in "\"'" else None
    if text[-1] == ")" and (match := _ARRAY.fullmatch(text)):
        return _spelled_list(match[1].strip()) if match[1].lstrip()[:1] == "[" else None
    return None


def is_pickled(data: bytes) -> bool:
    """Whether bytes are a pickle (of protocol 2 or above): nothing here ever loads one."""
    if len(data) < 3 or data[0] != 0x80 or not 2 <= data[1] <= 5 or data[-1:] != b".":
        return False
    try:
        next(iter(pickletools.genops(data)))
    except ValueError:
        return False
    return True


def shown_type(value: Any) -> str:
    """What a value is, as a reject's detail says it."""
    if isinstance(value, dict):
        names = ", ".join(str(name) for name in list(value)[:8])
        return f"an object with {names or 'no field'}, none of which is known to hold a text"
    if isinstance(value, (list, tuple)):
        return "a list without a text" if value else "an empty list"
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _collect(value: Any, strings: list[str], complaints: list[str], depth: int) -> None:
    if isinstance(value, str):
        strings.append(value if value.isascii() else _storable(value))
    elif value is None or isinstance(value, bool):
        pass
    elif isinstance(value, (int, float)):
        if depth == 0 and value == value:  # in a list it is no text, and NaN is nowhere
            strings.append(f"{value:g}" if isinstance(value, float) else str(value)[:40])
    elif isinstance(value, (bytes, bytearray, memoryview)):
        _collect_bytes(bytes(value), strings, complaints)
    elif depth > MAX_DEPTH:
        complaints.append(f"lists nested more than {MAX_DEPTH} deep")
    elif isinstance(value, dict):
        field = next((name for name in TEXT_FIELDS if value.get(name) is not None), None)
        if field is None:
            if value and any(item is not None for item in value.values()):
                complaints.append(shown_type(value))
        else:
            _collect(value[field], strings, complaints, depth + 1)
    elif isinstance(value, Iterable):  # lists, tuples, NumPy arrays
        items = list(value)
        answers = _answers(items)
        for item in items if answers is None else answers:
            _collect(item, strings, complaints, depth + 1)
    else:
        complaints.append(shown_type(value))


def _collect_bytes(data: bytes, strings: list[str], complaints: list[str]) -> None:
    if is_pickled(data):
        complaints.append("pickled bytes, which are not loaded; write texts or lists of texts")
    else:
        strings.append(data.decode("utf-8", "replace"))


def _answers(items: list[Any]) -> list[Any] | None:
    """Of a conversation its first answer, which describes the image; None: no conversation."""
    turns = [item for item in items if isinstance(item, dict)]
    if not turns or not any(name in turns[0] for name in SPEAKER_FIELDS):
        return None
    for turn in turns:
        speaker = next((turn[name] for name in SPEAKER_FIELDS if name in turn), None)
        if isinstance(speaker, str) and speaker.casefold() in ANSWERING:
            return [turn.get("value", turn.get("content"))]
    return []


def _spelled_texts(strings: list[str], complaints: list[str] | None) -> Iterable[str]:
    for text in strings:
        if text[:1] in '[({"an \n' and (value := spelled(text)) is not None:
            inner = cell_strings(value, complaints)
            if not inner and complaints is not None:
                complaints.append(shown_type(value))
            yield from inner
        elif text.startswith("[" * MAX_DEPTH):
            if complaints is not None:
                complaints.append(f"lists nested {MAX_DEPTH} deep and more")
        elif _PICKLED_TEXT.match(text):
            if complaints is not None:
                complaints.append("pickled bytes, which are not loaded")
        else:
            yield text


def _storable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return _HALF.sub("\0", _PAIR.sub(_joined, text))
    return text


def _joined(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def _clean_odd(text: str, notes: set[str]) -> str:
    for _ in range(MAX_ENTITY_PASSES):
        decoded = _ENTITY.sub(_decoded, text)
        if decoded == text:
            break
        notes.add(ENTITIES)
        text = decoded.replace("\xa0", " ")
    if "\ufffd" in text:
        notes.add(DAMAGED)
    plain = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n").translate(_BREAKS))
    if len(plain) < len(text.replace("\r\n", "\n")):
        notes.add(REPAIRED)
    return plain


def _decoded(match: re.Match[str]) -> str:
    name = match[1]
    if name[0] != "#":
        return html5.get(f"{name};", match[0])
    code = int(name[2:], 16) if name[1] in "xX" else int(name[1:])
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF or code == 0:
        return ""
    return html.unescape(match[0])


def _spelled_list(text: str) -> list[Any] | None:
    value = _from_json(text)
    if value is None:
        value = _scan(text[1:-1])
    if value is None:
        value = _from_python(text)
    if value is None and text[1:2] in "\"'" and text[-2:-1] in "\"'" and len(text) > 3:
        value = _BETWEEN_ITEMS.split(text[2:-2])  # a quote inside of an item was not escaped
    return value if isinstance(value, list) else None


def _from_json(text: str) -> Any:
    try:
        return _JSON.decode(text)
    except (ValueError, RecursionError):
        return None


def _scan(inner: str) -> list[str] | None:
    """Quoted items with commas between them, as Python writes them, or without, as NumPy does."""
    items: list[str] = []
    position, end = 0, len(inner)
    while position < end:
        match = _ITEM.match(inner, position)
        if match is None or match.end() == position:
            return None if inner[position:].strip() else items
        single, double, _ = match.groups()
        item = double if single is None else single
        if item is not None:
            items.append(_unescaped(item) if "\\" in item else item)
        position = match.end()
        if position < end and inner[position] == ",":
            position += 1
    return items


def _unescaped(item: str) -> str:
    quoted = item.replace('"', r"\"").replace(r"\\" + '"', r"\"") if '"' in item else item
    try:
        value = ast.literal_eval(f'"""{quoted}"""' if "\n" in quoted else f'"{quoted}"')
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return item
    return _storable(value)


def _from_python(text: str) -> Any:
    """Lists of objects and of lists as Python writes them, if they are small and flat enough."""
    brackets = sum(map(text.count, "[({"))
    if len(text) > MAX_LITERAL_CHARS or brackets > MAX_LITERAL_BRACKETS:
        return None
    if re.search(r"[\[({\-+~\s]{50}", text):
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
