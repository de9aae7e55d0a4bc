"""Lists in the forms that people have: dialects, JSON of all shapes, Parquet of all types."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources_support import captions_of, image_bytes, read_rows, source, tar_bytes, write

from caft.errors import DataError
from pipelines.data.sources import (
    LeftOut,
    detect_kind,
    list_containers,
    read_container,
    read_tables,
)
from pipelines.data.sources.check import check_source

UNQUOTED = [
    "a quiet station",
    '" a red boat on the lake',
    "two birds",
    'the 5" tall statue',
    '"golden" view of the hills',
    'person said " hello',
    "a, b; c",
]


def texts_of(rows):
    return [text for row in rows for entry in row["texts"] for text in entry["texts"]]


@pytest.mark.parametrize("kind", ["auto", "cc3m"])
@pytest.mark.parametrize("name", ["list.tsv", "list.csv", "list.txt"])
def test_a_header_on_an_unquoted_list(tmp_path, name, kind):
    lines = [f"{text}\thttp://a/{n}.jpg" for n, text in enumerate(UNQUOTED)]
    config = source(write(tmp_path / name, "\n".join(["caption\turl", *lines]) + "\n"), kind=kind)
    check_source(config)
    assert texts_of(read_rows(config)) == UNQUOTED


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
def test_delimiters_and_line_ends(tmp_path, mark, end):
    cells = [("http://a/1", f'"A dog{mark} it ""runs"""'), ("http://a/2", "A cat.")]
    lines = [mark.join(cells_of_row) for cells_of_row in [("url", "caption"), *cells]]
    config = source(write(tmp_path / "list.csv", end.join(lines) + end))
    check_source(config)
    assert texts_of(read_rows(config)) == [f'A dog{mark} it "runs"', "A cat."]


def test_sparks_escaping(tmp_path):
    text = 'url,caption\nhttp://a/1,"A \\"dog\\", it runs"\nhttp://a/2,"A cat\\\\dog."\n'
    config = source(write(tmp_path / "list.csv", text))
    assert texts_of(read_rows(config)) == ['A "dog", it runs', "A cat\\dog."]


@pytest.mark.parametrize(
    "text",
    [
        "# made by hand, today\n#\nurl,caption\nhttp://a/1,A dog.\n",
        "#url,caption\nhttp://a/1,A dog.\n",
        "\n\nurl,caption\n\nhttp://a/1,A dog.\n\n",
        "sep=;\r\nurl;caption\r\nhttp://a/1;A dog.\r\n",
        "URL , Caption \nhttp://a/1 , A dog. \n",
        '"url","caption"\n"http://a/1","A dog."\n',
        ",url,caption,\n0,http://a/1,A dog.,\n",
        "A dog.,http://a/1\n",
        "images/1.jpg\tA dog.\n",
    ],
)
def test_headers_comments_and_empty_lines(tmp_path, text):
    config = source(write(tmp_path / "list.csv", text))
    check_source(config)
    (row,) = read_rows(config)
    assert texts_of([row]) == ["A dog."]
    assert row["reason"] is None


def test_settings_override_what_the_bytes_say(tmp_path):
    path = write(tmp_path / "list.csv", 'url|x;caption\nhttp://a/1;"A dog."\n')
    config = source(path, delimiter=";", quoting="none", url_column="url|x")
    assert texts_of(read_rows(config)) == ['"A dog."']


def test_a_large_field_that_is_not_used(tmp_path):
    rows = [f"http://a/{n},A dog.,x" for n in range(1000)]
    rows[500] = f'http://a/500,A dog.,"{"y" * 5_000_000}"'
    path = write(tmp_path / "list.csv", "\n".join(["url,caption,b64", *rows]))
    assert [row["reason"] for row in read_rows(source(path))] == [None] * 1000


def test_a_row_too_large_is_one_bad_row(tmp_path):
    rows = [f"http://a/{n},A dog." for n in range(9)]
    rows[4] = f"http://a/4,{'y' * 40_000_000}"
    for name, text in (
        ("list.csv", "\n".join(["url,caption", *rows])),
        (
            "list.jsonl",
            "\n".join(
                json.dumps(dict(zip(("url", "caption"), r.split(","), strict=True))) for r in rows
            ),
        ),
    ):
        read = read_rows(source(write(tmp_path / name, text)))
        assert sorted(str(row["reason"]) for row in read) == ["None"] * 8 + ["bad_row"]
        assert "longer than 16 MiB" in next(row["detail"] for row in read if row["reason"])


def test_a_caption_with_a_line_that_is_a_url(tmp_path):
    text = 'url,caption\nhttp://a/1,"Seen at\nhttps://b/page, a dog."\nhttp://a/2,A cat.\n'
    rows = read_rows(source(write(tmp_path / "list.csv", text)))
    assert texts_of(rows) == ["Seen at\nhttps://b/page, a dog.", "A cat."]


@pytest.mark.parametrize("place", [0, 3, 2500])
def test_a_json_field_that_comes_late(tmp_path, place):
    rows = [{"url": f"http://a/{n}", "caption": "Short.", "pad": "x" * 900} for n in range(5000)]
    for row in rows[place:]:
        row["long_caption"] = "A long one. It has two."
        row["blip_title"] = "A title"
    left_out = LeftOut()
    config = source(write(tmp_path / "list.jsonl", "\n".join(map(json.dumps, rows))))
    tables = list(read_tables(config, (), left_out))
    held = sum(
        any(c["source"] == "long_caption" and any(c["text"]) for c in captions)
        for table in tables
        for captions in table["captions"].to_pylist()
    )
    assert held == 5000 - place
    assert left_out.rows["blip_title"] == 5000 - place
    assert left_out.rows["pad"] is None


RECORDS = [{"url": f"http://a/{n}.jpg", "caption": f"Dog {n}.", "score": n} for n in range(5)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", json.dumps(RECORDS)),
        ("list.json", json.dumps(RECORDS, indent=2)),
        ("list.json", json.dumps({"info": {"v": [1, {"a": 2}]}, "annotations": RECORDS})),
        ("list.json", json.dumps({"data": RECORDS, "more": 1}, indent=1)),
        ("list.jsonl", json.dumps(RECORDS)),
        ("list.json", "\n".join(map(json.dumps, RECORDS))),
        ("list.jsonlines", "\n".join(map(json.dumps, RECORDS))),
        ("list.ndjson", "\r\n".join(map(json.dumps, RECORDS))),
        ("list.json", json.dumps([r | {"score": float("nan")} for r in RECORDS])),
        ("list.jsonl", "\n".join(json.dumps(r | {"score": float("nan")}) for r in RECORDS)),
        ("list", "\n".join(map(json.dumps, RECORDS))),
    ],
)
def test_json_of_all_shapes(tmp_path, name, text):
    config = source(write(tmp_path / name, text))
    assert detect_kind(config) == "table"
    check_source(config)
    rows = read_rows(config, ["score"])
    assert texts_of(rows) == [f"Dog {n}." for n in range(5)]
    assert [row["url"] for row in rows] == [record["url"] for record in RECORDS]


def test_a_broken_entry_of_an_array_costs_its_row(tmp_path):
    entries = [json.dumps(record) for record in RECORDS]
    entries[2] = '{"url": "http://a/2.jpg", "caption": tru}'
    entries[3] = '{"url": "http://a/3.jpg", "caption": ' + "[" * 100_000 + "]" * 100_000 + "}"
    rows = read_rows(source(write(tmp_path / "list.json", f"[{', '.join(entries)}]")))
    assert [row["reason"] for row in rows] == [None, None, "bad_row", "bad_row", None]


@pytest.mark.parametrize("text", ["{}", '{"a": 1,\n "b": [1]}', "[1, 2]", '["a"]', "[]", "[[1]]"])
def test_json_that_is_no_list(tmp_path, text):
    with pytest.raises(DataError, match=r"list\.json: "):
        check_source(source(write(tmp_path / "list.json", text)))


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_an_object_is_no_place_of_an_image(tmp_path, ending):
    rows = [json.dumps({"image": {"url": "http://a/1"}, "caption": "A dog."})] * 3
    text = f"[{', '.join(rows)}]" if ending == "json" else "\n".join(rows)
    with pytest.raises(DataError, match=r"none of its first 3 rows can be used: bad_"):
        check_source(source(write(tmp_path / f"list.{ending}", text)))


@pytest.mark.parametrize("between", ["", "\n", "\n\n"])
def test_documents_that_are_joined_end_to_end(tmp_path, between):
    parts = [json.dumps(RECORDS[:2]), json.dumps({"data": RECORDS[2:4]}), json.dumps(RECORDS[4:])]
    rows = read_rows(source(write(tmp_path / "list.json", between.join(parts))))
    assert texts_of(rows) == [f"Dog {n}." for n in range(5)]
    (*good, bad) = read_rows(source(write(tmp_path / "list.json", parts[0] + between + "x")))
    assert texts_of(good) == ["Dog 0.", "Dog 1."]
    assert bad["reason"] == "bad_row"
    lines = between.join(map(json.dumps, RECORDS))
    assert len(read_rows(source(write(tmp_path / "list.jsonl", lines)))) == 5


@pytest.mark.parametrize("stray", ["}", '{"url": "http://a/9, "caption": "x"}', "tru", "{", ":"])
def test_what_is_broken_between_records_costs_no_other(tmp_path, stray):
    entries = list(map(json.dumps, RECORDS))
    text = f"[{', '.join([*entries[:2], stray, *entries[2:]])}]"
    rows = read_rows(source(write(tmp_path / "list.json", text)))
    assert texts_of(rows) == [f"Dog {n}." for n in range(5)]
    assert [row["reason"] for row in rows] == [None, None, "bad_row", None, None, None]
    text = f"[{', '.join([*entries[:2], chr(34), *entries[2:]])}]"  # a quote spoils the next one
    rows = read_rows(source(write(tmp_path / "list.json", text)))
    assert [row["reason"] for row in rows] == [None, None, "bad_row", "bad_row", None, None]


def test_conversations_in_json_lines(tmp_path):
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A dog."}]
    row = json.dumps({"image": "1.jpg", "conversations": turns})
    (read,) = read_rows(source(write(tmp_path / "list.jsonl", row)))
    assert captions_of(read) == {"sharegpt4v": ["A dog."]}


@pytest.mark.parametrize("depth", [300, 100_000])
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_nested_brackets_cost_their_line(tmp_path, depth, brackets):
    half = len(brackets) - 1
    deep = brackets[:half] * depth + "1" + brackets[half:] * depth
    lines = [json.dumps(record) for record in RECORDS]
    lines[2] = '{"url": "http://a/2", "caption": "Dog 2.", "deep": ' + deep + "}"
    rows = read_rows(source(write(tmp_path / "list.jsonl", "\n".join(lines))))
    assert len(rows) == 5
    assert sum(row["reason"] is None for row in rows) >= 4


@pytest.mark.parametrize("name", ["list.csv.gz", "list.csv", "list.csv.bz2", "list.csv.xz", "list"])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compression_is_told_by_bytes_not_by_the_name(tmp_path, name, pack):
    text = b"url,caption\nhttp://a/1,A dog.\n"
    config = source(write(tmp_path / name, pack(text)))
    check_source(config)
    assert texts_of(read_rows(config)) == ["A dog."]


def test_a_list_that_is_not_compressed_though_its_name_says_so(tmp_path):
    config = source(write(tmp_path / "list.csv.gz", "url,caption\nhttp://a/1,A dog.\n"))
    assert texts_of(read_rows(config)) == ["A dog."]


def test_a_zip_archive_is_refused(tmp_path):
    with pytest.raises(DataError, match="a zip archive; unpack it"):
        check_source(source(write(tmp_path / "list.csv", b"PK\x03\x04" + bytes(100))))


TEXT_TYPES = {
    "string": (pa.string(), "['A dog.', 'B']"),
    "large_string": (pa.large_string(), "['A dog.', 'B']"),
    "string_view": (pa.string_view(), "['A dog.', 'B']"),
    "binary": (pa.binary(), b"['A dog.', 'B']"),
    "list": (pa.list_(pa.string()), ["A dog.", "B"]),
    "large_list": (pa.large_list(pa.large_string()), ["A dog.", "B"]),
    "fixed_list": (pa.list_(pa.string(), 2), ["A dog.", "B"]),
    "list_of_bytes": (pa.list_(pa.binary()), [b"A dog.", b"B"]),
    "nested": (pa.list_(pa.list_(pa.string())), [["A dog."], ["B"]]),
    "objects": (
        pa.list_(pa.struct([("text", pa.string()), ("n", pa.int64())])),
        [{"text": "A dog.", "n": 1}, {"text": "B", "n": 2}],
    ),
    "object": (pa.struct([("captions", pa.list_(pa.string()))]), {"captions": ["A dog.", "B"]}),
}


@pytest.mark.parametrize("name", [*TEXT_TYPES, "dictionary"])
def test_parquet_columns_of_all_types(tmp_path, name):
    kind, value = TEXT_TYPES.get(name, TEXT_TYPES["string"])
    nothing = ["", ""] if name == "fixed_list" else None  # whose nulls Arrow does not read
    texts = pa.array([value, nothing], kind)
    if name == "dictionary":
        texts = texts.dictionary_encode()
    urls = pa.array(["http://a/1", "http://a/2"])
    pq.write_table(pa.table({"url": urls, "captions": texts}), tmp_path / "list.parquet")
    config = source(tmp_path / "list.parquet")
    check_source(config)
    rows = read_rows(config)
    assert captions_of(rows[0]) == {"captions": ["A dog.", "B"]}
    assert rows[1]["reason"] == "no_caption"


def test_parquet_types_that_hold_no_text(tmp_path):
    for kind, value in (
        (pa.map_(pa.string(), pa.string()), [("a", "b")]),
        (pa.list_(pa.struct([("x", pa.int64())])), [{"x": 1}]),
    ):
        table = pa.table({"url": ["http://a/1"], "caption": pa.array([value], kind)})
        pq.write_table(table, tmp_path / "list.parquet")
        with pytest.raises(DataError, match=r"'caption' holds .*texts are due"):
            check_source(source(tmp_path / "list.parquet"))


def test_pickled_captions_are_refused(tmp_path):
    table = pa.table({"url": ["http://a/1"], "caption": [b"\x80\x04]\x94\x8c\x01a\x94a."]})
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(DataError, match="pickled bytes"):
        check_source(source(tmp_path / "list.parquet"))


def test_hive_partitions(tmp_path):
    for language in ("en", "pt%20br"):
        folder = tmp_path / f"set/lang={language}/year=2024"
        folder.mkdir(parents=True)
        table = pa.table({"url": [f"http://a/{language}"], "caption": ["A dog."]})
        pq.write_table(table, folder / "part-0.parquet")
        write(folder / "_SUCCESS", "")
        write(folder / "_metadata.parquet", "x")
    config = source(tmp_path / "set")
    check_source(config)
    rows = read_rows(config, ["lang"])
    assert [row["columns"] for row in rows] == [{"lang": "en"}, {"lang": "pt br"}]


@pytest.mark.parametrize("form", ["struct", "binary", "large_binary"])
def test_parquet_with_images_in_it(tmp_path, form):
    images = [image_bytes(0), image_bytes(1), None]
    if form == "struct":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": image, "path": "x.png"} for image in images], kind)
    else:
        column = pa.array(images, pa.large_binary() if "large" in form else pa.binary())
    table = pa.table({"image": column, "text": ["A dog.", "['B.', 'C.']", "D."], "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "train-00000.parquet")
    config = source(tmp_path)
    assert detect_kind(config) == "embedded"
    check_source(config)
    (path,) = list_containers(config)
    rows = list(read_container(path, config, ["n"]))
    assert [row["url"] for row in rows] == [f"{path}::{n}" for n in range(3)]
    assert [row["data"] for row in rows] == images
    assert texts_of(rows) == ["A dog.", "B.", "C.", "D."]
    assert [row["reason"] for row in rows] == [None, None, "missing_file"]
    assert [row["columns"] for row in rows] == [{"n": str(n)} for n in (1, 2, 3)]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_folder_of_images_with_metadata(tmp_path, ending):
    for split in ("train", "test"):
        write(tmp_path / f"{split}/1.png", image_bytes())
        rows = [{"file_name": "1.png", "text": f"A dog in {split}."}]
        path = tmp_path / f"{split}/metadata.{ending}"
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif ending == "jsonl":
            write(path, json.dumps(rows[0]))
        else:
            write(path, f"file_name,text\n1.png,A dog in {split}.\n")
    config = source(tmp_path)
    check_source(config)
    rows = read_rows(config)
    assert [row["url"] for row in rows] == [f"{tmp_path}/{s}/1.png" for s in ("test", "train")]
    assert texts_of(rows) == ["A dog in test.", "A dog in train."]


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "parquet", "embedded", "tar", "folder"])
def test_what_is_left_out_is_noted_with_its_rows(tmp_path, form):
    rows = [{"url": f"http://a/{n}", "caption": "A dog.", "title": "T", "width": n} for n in (1, 2)]
    rows[1]["title"] = None
    path, table = tmp_path / f"list.{form}", pa.Table.from_pylist(rows)
    if form == "csv":
        write(path, "url,caption,title,width\nhttp://a/1,A dog.,T,1\nhttp://a/2,A cat.,,2\n")
    elif form in ("json", "jsonl"):
        write(path, json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)))
    elif form in ("parquet", "embedded"):
        path = path.with_suffix(".parquet")
        images = [image_bytes(), image_bytes()]
        pq.write_table(table if form == "parquet" else table.set_column(0, "image", [images]), path)
    else:
        members = [(f"{n}.png", image_bytes()) for n in (1, 2)]
        members += [(f"{r['width']}.json", json.dumps(r | {"url": None}).encode()) for r in rows]
        for name, data in members:
            write(tmp_path / "images" / name, data)
        path = tmp_path / "images"
        if form == "tar":
            path = write(tmp_path / "a.tar", tar_bytes(sorted(members, reverse=True)))
    config, left_out = source(path), LeftOut()
    if form in ("embedded", "tar"):
        list(read_container(str(path), config, (), left_out))
    else:
        list(read_tables(config, (), left_out))
    left_out.rows.pop("url", None)
    assert left_out.rows == {"title": 1, "width": None}


def test_a_list_none_of_whose_rows_can_be_used(tmp_path):
    for text, line in (
        ("url,caption\nhttp://a/1,nan\nhttp://a/2,\n", r"no_caption 2 \(every caption column"),
        ("url,caption\nftp://a/1,A dog.\n", r"bad_url 1 \(not an http"),
    ):
        with pytest.raises(DataError, match=f"none of its first . rows can be used: {line}"):
            check_source(source(write(tmp_path / "list.csv", text)))
    rows = "\n".join(json.dumps({"url": "http://a/1", "captions": [{"id": 1}]}) for _ in range(3))
    with pytest.raises(DataError, match=r"captions: an object with id, none of which"):
        check_source(source(write(tmp_path / "list.jsonl", rows)))
