"""One answer for one cell, whatever reader it comes through."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources_support import captions_of, image_bytes, read_rows, source, tar_bytes, write

from pipelines.data.sources import list_containers, read_container
from pipelines.data.sources.cells import DAMAGED, ENTITIES, REPAIRED, cell_texts, clean_text

SPELLED = [
    ("A dog.", ["A dog."]),
    ("['A dog.', 'Two cats.']", ["A dog.", "Two cats."]),
    ('["A dog.", "Two cats."]', ["A dog.", "Two cats."]),
    ("['A dog.' 'Two cats.'\n 'x']", ["A dog.", "Two cats.", "x"]),  # NumPy's
    ("array(['A dog.', 'Two cats.'], dtype=object)", ["A dog.", "Two cats."]),
    ("('A dog.', 'Two cats.')", ["A dog.", "Two cats."]),
    (r'"[\"A dog.\", \"B\"]"', ["A dog.", "B"]),  # written as JSON twice
    ("[{'text': 'A dog.'}, {'text': 'B'}]", ["A dog.", "B"]),
    ('[{"id": 1, "caption": "A dog."}]', ["A dog."]),
    ('{"caption": "A dog.", "score": 0.5}', ["A dog."]),
    ("[['A dog.'], ['B', 'C']]", ["A dog.", "B", "C"]),
    ("['it\\'s', \"it's\", 'a \\u00e9']", ["it's", "it's", "a é"]),
    ("['A dog's ball.', 'B']", ["A dog's ball.", "B"]),  # quoted by hand
    ("[None, 'A dog.', nan, '']", ["A dog."]),
    ("[]", []),
    ("[a square]", ["[a square]"]),
    ("[Photo] a dog [1]", ["[Photo] a dog [1]"]),
    ("(a dog)", ["(a dog)"]),
    ("{a dog}", ["{a dog}"]),
    *((nothing, []) for nothing in ("nan", "NaN", "null", "None", "N/A", r"\N", "<NA>", " ")),
    ("None of them is here.", ["None of them is here."]),
]


@pytest.mark.parametrize(("cell", "expected"), SPELLED)
def test_what_a_text_spells(cell, expected):
    assert cell_texts(cell, set()) == expected
    assert cell_texts([cell], set()) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["A dog.", None, "B"], ["A dog.", "B"]),
        ([{"text": "A dog."}, {"raw": "B", "tokens": ["B"]}], ["A dog.", "B"]),
        ({"captions": ["A dog.", "B"]}, ["A dog.", "B"]),
        (np.array(["A dog.", "B"], object), ["A dog.", "B"]),
        (b"A dog.", ["A dog."]),
        (float("nan"), []),
        (True, []),
        (
            [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A dog."}],
            ["A dog."],
        ),
        ([{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A dog."}], ["A dog."]),
    ],
)
def test_what_a_value_holds(value, expected):
    assert cell_texts(value, set()) == expected


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (b"\x80\x04]\x94\x8c\x01a\x94a.", "pickled bytes"),
        (r"b'\x80\x04]\x94\x8c\x01a\x94a.'", "pickled bytes"),
        ([{"id": 1, "score": 2}], "an object with id, score, none of which"),
        ("[" * 100_000 + "]" * 100_000, "nested 8 deep"),
        ([[[[[[[[[[["deep"]]]]]]]]]]], "nested more than 8 deep"),
    ],
)
def test_what_is_no_text_is_named(value, complaint):
    complaints = []
    assert cell_texts(value, set(), complaints) == []
    assert complaint in complaints[0]


@pytest.mark.parametrize(
    ("text", "expected", "notes"),
    [
        ("A \x00dog\x07 runs\ufeff.", "A dog runs.", {REPAIRED}),
        ("one\r\ntwo\rthree\x85four\u2028five", "one\ntwo\nthree\nfour\nfive", set()),
        ("Tom &amp; Jerry &lt;3 &#39;x&#39; &#x1F600;", "Tom & Jerry <3 'x' 😀", {ENTITIES}),
        ("a&nbsp;b &amp;quot;c&amp;quot;", 'a b "c"', {ENTITIES}),
        ("AT&T, R&D; &copy &unknown; a&b;", "AT&T, R&D; &copy &unknown; a&b;", set()),
        ("&#0;&#55357;x&#1114112;", "x", {ENTITIES}),
        ("caf\ufffd", "caf\ufffd", {DAMAGED}),
        ("naïve 犬 👩\u200d👧 \u200fשלום", "naïve 犬 👩\u200d👧 \u200fשלום", set()),
    ],
)
def test_what_becomes_of_a_text(text, expected, notes):
    found = set()
    assert clean_text(text, found) == expected
    assert found == notes
    assert clean_text(expected, set()) == expected


ROWS = [
    ("A dog &amp; a cat.", "['A dog.', 'Two cats. They sit.']"),
    ("nan", '["A bird."]'),
    ("x\ufeff", "['one' 'two']"),
]


def through_csv(tmp_path):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["url", "raw_caption", "longSV_captions"])
    writer.writerows([f"http://a/{n}.jpg", *row] for n, row in enumerate(ROWS))
    return read_rows(source(write(tmp_path / "list.csv", text.getvalue())))


def records():
    return [
        {"url": f"http://a/{n}.jpg", "raw_caption": raw, "longSV_captions": long}
        for n, (raw, long) in enumerate(ROWS)
    ]


def through_jsonl(tmp_path):
    lines = "\n".join(map(json.dumps, records()))
    return read_rows(source(write(tmp_path / "list.jsonl", lines)))


def through_json_array(tmp_path):
    return read_rows(source(write(tmp_path / "list.json", json.dumps(records()))))


def through_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(records()), tmp_path / "list.parquet")
    return read_rows(source(tmp_path / "list.parquet"))


def through_embedded_parquet(tmp_path):
    rows = [row | {"image": {"bytes": image_bytes(), "path": "a.png"}} for row in records()]
    pq.write_table(pa.Table.from_pylist(rows).drop_columns(["url"]), tmp_path / "images.parquet")
    return from_containers(source(tmp_path / "images.parquet"))


def through_tar(tmp_path):
    members = []
    for n, row in enumerate(records()):
        members += [(f"{n}.png", image_bytes(n)), (f"{n}.json", json.dumps(row).encode())]
    return from_containers(source(write(tmp_path / "a.tar", tar_bytes(members))))


def through_folder(tmp_path):
    for n, row in enumerate(records()):
        write(tmp_path / f"images/{n}.png", image_bytes(n))
        write(tmp_path / f"images/{n}.json", json.dumps(row))
    return read_rows(source(tmp_path / "images"))


def from_containers(config):
    return [row for path in list_containers(config) for row in read_container(path, config)]


@pytest.mark.parametrize(
    "through",
    [
        through_csv,
        through_jsonl,
        through_json_array,
        through_parquet,
        through_embedded_parquet,
        through_tar,
        through_folder,
    ],
)
def test_equal_rows_give_equal_captions_through_every_reader(tmp_path, through):
    rows = through(tmp_path)
    assert [captions_of(row) for row in rows] == [
        {"raw_caption": ["A dog & a cat."], "longSV": ["A dog.", "Two cats. They sit."]},
        {"longSV": ["A bird."]},
        {"raw_caption": ["x"], "longSV": ["one", "two"]},
    ]
    assert [row["notes"] for row in rows] == [{ENTITIES}, set(), {REPAIRED}]
    assert [row["reason"] for row in rows] == [None] * 3
