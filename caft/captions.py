"""Captions into sentences, and sentences into the chunks that evaluation reads.
First thing that happens to text in the data stage; training samples are cut elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

Rule = Literal["default", "reference"]  # by which a text is split into sentences

REFERENCE_MIN_CHARS = 3  # training data of the reference drops shorter pieces
JOINER = ". "
MAX_CHUNK_SENTENCES = 3


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Abbreviations, by what may follow their stop. Never the end of a sentence:
_NEVER = _words(
    "mr mrs ms dr prof messrs mme mlle gen col capt lt sgt maj cpl rev hon gov sen pres mt fr sra"
    " dra srta sig dott dhr mevr ee vs cf a.k.a e.g i.e approx incl esp resp viz z.b d.h u.a bzw"
    " inkl ggf evtl geb p.ej p.ex aprox env bijv np ul bl.a ул им"
)
# The end only before a usual beginning of sentences, as in "Main St. The car":
_SELDOM = _words("st sr jr ave blvd rd inc ltd co corp bros dept est al")
# The end only before a capital:
_LISTS = _words("etc usw ecc enz")
# Not the end before a number, as in "No. 5"; words of their own elsewhere:
_NUMBERED = _words(
    "ca no nos nr nrs n° nº mk vol fig figs p pp ch sec art op ed eds str num pág núm рис стр"
    " mon tue tues wed thu thur thurs fri jan feb mar apr jun jul aug sep sept oct okt nov dec dez"
)
# As _SELDOM after a number, as in "4.5 in. wide"; words of their own elsewhere:
_UNITS = _words(
    "in ft yd mi oz lb lbs hr hrs min mins sec secs cm mm km m kg g l ml dl sq deg mph fl г гг"
)
_SPECIAL = _NEVER | _SELDOM | _LISTS | _NUMBERED | _UNITS
_TIMES = _words("a.m p.m")  # the end before a capital too, unless a date follows
_DATES = _words(
    "monday tuesday wednesday thursday friday saturday sunday january february march april may june"
    " july august september october november december"
)
_BRANDS = _words("yahoo jeopardy ahoy guess wham joomla")  # as _SELDOM, before "!"
# Words that begin sentences and seldom continue a name; these also where all is lower case:
_SUBJECTS = _words(
    "the a an it its it's there there's this that these those he she they we his her their both"
)
_BEGINNINGS = _SUBJECTS | _words(
    "i in on at some one two three four several many most all each another no not my our your what"
    " how why which did does is are was who where when while as if but and so then next here behind"
    " beside between before after above below under over around across along near inside outside"
    " beneath to from with by for also however overall der die das ein eine es er sie im le les la"
    " un une il elle el los las una o os он она оно они это в на"
)
# What makes a number with a stop an ordinal: "3. Oktober", "das 2. Bild".
_MONTHS = _words(
    "Januar Februar März April Mai Juni Juli August September Oktober November Dezember"
)
_ARTICLES = _words(
    "am vom zum im beim der die das dem den des ein eine einen einem einer jede jeder bis"
)
_FILE_ENDINGS = _words(
    "com org net edu gov jpg jpeg png gif webp svg pdf html htm txt md js py css json csv"
)

_MARKS = ".!?…"
_FULL_STOPS = "。．｡।॥۔։።။។"
_UNSPACED = _FULL_STOPS + "！？؟"  # marks after which no space is needed
_DOTS = "•‣▪●◦"
_CLOSERS = "\"'”’»」』)）\\]*_"
_OPENERS = '"“«([「『（'
_EMOJI = "\u2600-\u27bf\u2b50\ufe0f\u200d\U0001f1e6-\U0001faff"
_CAPITAL = "A-ZÀ-ÞΑ-ΩА-Я"
_PARTICLES = "とっはがをにのでも"  # after a quotation they go on with its sentence
_WINDOW_CHARS = 40  # looked at before a mark: longer words are no abbreviations
_ENCLOSED_CHARS = 300  # longer quotations and asides are cut like other text


def _enclosed(pair: str) -> str:
    opener, closer = map(re.escape, pair)
    return rf"(?<={opener})(?=\S)[^{opener}{closer}]{{1,{_ENCLOSED_CHARS}}}+(?<!\s){closer}"


# What stands in quotes or brackets is never cut. A straight quote opens after a space or bracket
# only: elsewhere it closes, or stands for inches.
_ENCLOSED = "|".join(
    [
        r'(?<![^\s(\[]")' + _enclosed('""'),
        *map(_enclosed, ["“”", "«»", "()", "[]", "「」", "『』", "（）"]),
    ]
)
# Every place where a sentence may end. Each match opens with one set of characters, which the
# regular expression engine looks for fast, and repetition is possessive: time is linear.
_CANDIDATE = re.compile(
    rf"""[{_MARKS}{_UNSPACED}{_EMOJI};{re.escape(_OPENERS)}]
    (?:
        (?:
            (?:{_ENCLOSED}) (?<=[{_MARKS}{_UNSPACED}].)
          | (?<=[{_MARKS}]) (?<![{_MARKS}][{_MARKS}]) [{_MARKS}]*+
          | (?<=[{_UNSPACED}]) (?!(?<=\d．)\d) [{_MARKS}{_UNSPACED}]*+
          | (?<=[{_EMOJI}]) (?<![{_EMOJI}][{_EMOJI}]) [{_EMOJI}]*+
          | (?<=[\u0370-\u03ff];)  # the Greek question mark
        )
        (?P<close>[{_CLOSERS}]*+(?:\ ?[{_EMOJI}]++){{0,4}}+)
        (?P<gap>
            \s++
          | (?<=[{_UNSPACED}]) | (?<=[{_UNSPACED}][{_CLOSERS}])
          | (?=(?:[{_CAPITAL}](?=\s)|[{_CAPITAL}](?:[{_CAPITAL}]++|[^\W\d_]++))(?!\.?\w))
          | (?=(?:the|there|this|these|they|an?|it|he|she)\s)
        )
      | {_ENCLOSED}
    )""",
    re.VERBOSE,
)
_FOLLOWING = re.compile(rf"[^\w\s{_MARKS}]{{0,8}}\s?([^\W_][\w'’]{{0,23}}+)(\.?)")
_SPEECH = re.compile(
    r"(?:[\w.]{1,20} ){1,2}(?:said|says|asked|asks|shouted|shouts|cried|cries|replied)\b"
)
_INITIALS = re.compile(r"[^\W\d_]|[^\W\d_]{1,2}(?:\.[^\W\d_]{1,2})++")
_LIST_MARK = re.compile(r"\d{1,3}|\d[\d.]*+|[^\W\d_]|[IVX]++")
_NUMBER_MARK = r"(?:\.\)|[.)])"
_FIRST_ITEM = re.compile(rf"(?:^|(?<=:\s))(\(?)(1|[aA](?=\)))({_NUMBER_MARK})\s")
_BULLET = re.compile(
    rf"(?:[-*–—]++\s|#{{1,6}}\s|[{_DOTS}✓✔➤]++|\(?[a-zA-Z]\)\s"
    rf"|\(?\d{{1,2}}{_NUMBER_MARK}(?:\s|(?=[A-Z]))(?!\s*(?:{'|'.join(sorted(_MONTHS))})\b))\s*+"
)
_WORD_CHARACTER = re.compile(r"\w")


def split_sentences(text: str, mode: Rule = "default", min_chars: int = 1) -> list[str]:
    """Sentences of a caption, in order, without a final full stop.

    `default` keeps abbreviations, decimals, initials, ellipses and URLs whole, and what stands in
    quotes or brackets; it takes every line and bullet as its own sentence, and knows the full
    stops of several scripts. `reference` is the published rule: cut at every ".", newline and
    "</s>".

    Args:
        min_chars: shorter pieces are dropped (the reference's training data: 3).
    """
    if mode == "reference":
        pieces = [piece.strip() for piece in re.split(r"\.|\n|</s>", text)]
    else:
        lines = text.replace("</s>", "\n").splitlines()
        pieces = [
            piece for line in lines for item in _items(line.strip()) for piece in _split_item(item)
        ]
    return [piece for piece in pieces if piece and len(piece) >= min_chars]


def caption_sentences(caption: str | Sequence[str], mode: Rule = "default") -> list[str]:
    """Sentences of a caption, by a rule of `split_sentences`.

    Args:
        caption: a text; or sentences, such as a dataset holds. `reference` cuts those further
            where its rule cuts; `default` keeps them as they are.
    """
    if isinstance(caption, str):
        return split_sentences(caption, mode)
    if mode == "default":
        return list(caption)
    return [piece for sentence in caption for piece in split_sentences(sentence, mode)]


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


def _items(line: str) -> list[str]:
    """The items of a list that is written on one line, or the line."""
    if line and line[0] in _DOTS:
        return [part.strip() for part in line.split(line[0])]
    first = _FIRST_ITEM.search(line) if any(m in line for m in ("2", "b)", "B)")) else None
    if not first:
        return [line]
    opening, mark, closing = first.groups()
    starts = [0, first.start()]
    while True:
        mark = str(len(starts)) if mark.isdigit() else chr(ord(mark) + 1)
        start = line.find(f" {opening}{mark}{closing} ", starts[-1])
        if start < 0:
            break
        starts.append(start + 1)
    if len(starts) == 2:
        return [line]
    return [line[a:b].strip() for a, b in pairwise([*starts, len(line)])]


def _split_item(line: str) -> list[str]:
    """Sentences of a line or list item; one that is a quotation may hold several."""
    bullet = _BULLET.match(line)
    if bullet:
        line = line[bullet.end() :]
    if line[:1] in ('"', "“") and line[-1] in '"”':
        inner = line[1:-1]
        if not any(quote in inner for quote in '"“”'):
            sentences = _cut(inner)
            if len(sentences) > 1:
                return sentences
    return _cut(line)


def _cut(text: str) -> list[str]:
    """Cut where a sentence ends; `text` holds no line break."""
    lower_case = text[:1].islower() or text.islower()  # such a caption uses no capitals
    sentences, start = [], 0
    for match in _CANDIDATE.finditer(text):
        if match["gap"] is not None and _ends_sentence(text, start, match, lower_case):
            end, next_start = match.end("close"), match.end()
            if end == next_start and text[end - 1] == '"' and text.count('"', start, end) % 2:
                end = next_start = end - 1  # steps."The: this quote opens
            sentences.append(_without_stop(text[start:end]))
            start = next_start
    sentences.append(_without_stop(text[start:]))
    return [sentence for sentence in sentences if _WORD_CHARACTER.search(sentence)]


def _without_stop(sentence: str) -> str:
    sentence = sentence.strip()
    if sentence and (sentence[-1] == "." or sentence[-1] in _FULL_STOPS):
        bare = sentence[:-1].rstrip()
        if not bare.endswith((".", "…")):
            return bare
    return sentence


class _Place(NamedTuple):
    """What stands before and after a mark that may end a sentence."""

    words: list[str]  # before it, the last ones of the sentence
    word: str  # the last one, without quotes or brackets before it
    mark: str
    quoted: bool  # a quote or bracket closes after the mark
    glued: bool  # no space follows
    opens: bool  # the words are all of the sentence
    next_word: str
    abbreviated: bool  # a stop follows the next word
    subject: bool  # the next word is one of _SUBJECTS
    usual: bool  # the next word is a usual beginning, written as one
    lower_case: bool  # of the whole caption


def _ends_sentence(text: str, start: int, match: re.Match[str], lower_case: bool) -> bool:
    """Whether the sentence that begins at `start` ends at this candidate."""
    following = _FOLLOWING.match(text, match.end())
    if not following:
        return False
    begin, (close, closed) = match.start(), match.span("close")
    if text[begin] in _OPENERS:  # quoted text that ends with a mark
        inner = text[max(start, close - _WINDOW_CHARS) : close - 1]
        before = inner.rstrip(_MARKS + _UNSPACED)
        mark, quoted = inner[len(before) :], True
    else:
        before = text[max(start, begin - _WINDOW_CHARS) : begin]
        mark, quoted = text[begin:close], close < closed and text[close] in _CLOSERS
    words = before.split()
    if not words:
        return False
    word = words[-1].rpartition("—")[2].lstrip(_OPENERS)
    next_word, abbreviated, glued = following[1], following[2] != "", match["gap"] == ""
    if mark[-1] in _UNSPACED:
        return not (glued and text[match.end() - 1] in "」』" and text[match.end()] in _PARTICLES)
    if quoted and _SPEECH.match(text, match.end()):
        return False
    if (
        next_word[0].isupper()
        and not glued
        and mark == "."
        and len(word) > 1
        and word.isalpha()
        and word.lower() not in _SPECIAL
    ):
        return True  # most stops, soon decided
    name = "" if abbreviated and len(next_word) == 1 else next_word.lower()
    subject = name in _SUBJECTS
    usual = name in _BEGINNINGS if next_word[0].isupper() else subject and lower_case
    opens = len(words) == 1 and start >= begin - _WINDOW_CHARS
    return _ends_at(
        _Place(
            words,
            word,
            mark,
            quoted,
            glued,
            opens,
            next_word,
            abbreviated,
            subject,
            usual,
            lower_case,
        )
    )


def _ends_at(place: _Place) -> bool:
    if place.mark[-1] not in _MARKS + ";":  # an emoji
        return place.usual
    if place.glued and not _glued_sentences(place):
        return False
    if place.mark == "." and not _is_full_stop(place):
        return False
    if place.mark == "!" and place.word.lower() in _BRANDS:
        return place.usual
    ellipsis = place.mark[-1] == "…" or place.mark.endswith("..") or not place.word.strip(".")
    if place.next_word.islower() and not place.next_word[0].isdigit():
        if ellipsis:
            return False
        if place.quoted:
            return place.lower_case and place.subject
        return place.lower_case or (place.subject and len(place.word) > 2)
    return not (ellipsis and place.next_word.split("'")[0] == "I")


def _glued_sentences(place: _Place) -> bool:
    """Whether "dog.The" are two sentences, rather than an address, a file or a name."""
    word = place.word
    if any(sign in word for sign in "./@:") or place.next_word.lower() in _FILE_ENDINGS:
        return False
    if place.next_word.islower() and not place.lower_case:
        return False
    return (
        place.quoted or (len(word) > 1 and word[-1].islower()) or (word.isdigit() and place.usual)
    )


def _is_full_stop(place: _Place) -> bool:
    """Whether a "." is the end of a sentence, rather than of an abbreviation or a number."""
    words, word, next_word = place.words, place.word, place.next_word
    name, before = word.lower(), words[-2] if len(words) > 1 else ""
    if (place.opens or before.endswith(":")) and _LIST_MARK.fullmatch(word):
        return False
    if name in _NEVER:
        return word.isupper() and place.usual  # "Butte, MT. The sky"
    if name in _TIMES and next_word.istitle() and not place.abbreviated:
        return next_word.lower() not in _DATES
    if name in _SELDOM or _is_initials(word):
        return place.usual
    if name in _LISTS:
        return place.usual or next_word[0].isupper()
    numeral = next_word[0].isdigit() or not next_word.strip("IVXLC") or len(next_word) == 1
    if name in _NUMBERED and numeral and not place.usual:
        return False
    unit = name.lstrip("0123456789.,")
    if unit in _UNITS and (unit != name or before[-1:].isdigit() or word.istitle()):
        return place.usual
    if word.isdigit() and len(word) < 3 and not place.usual:
        return before.lower() not in _ARTICLES and next_word not in _MONTHS
    return not (name.endswith("str") and numeral)


def _is_initials(word: str) -> bool:
    """ "J", "U.S" and "Ph.D", but no single letter of a script without capitals: a word there."""
    return bool(_INITIALS.fullmatch(word)) and ("." in word or word.lower() != word.upper())
