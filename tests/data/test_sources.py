"""Source lists: what is read, and the one clear line for each that cannot be."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources_support import captions_of, read_rows, source, write

from caft.errors import DataError
from pipelines.data.sources import (
    DREAMLIP_CAPTION_COLUMNS,
    DREAMLIP_URL_COLUMN,
    RAW_SCHEMA,
    detect_kind,
    read_tables,
    source_identity,
)
from pipelines.data.sources.cells import clean_text
from pipelines.data.sources.check import check_source


def reasons_of(rows):
    return [row["reason"] for row in rows]


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere/*.csv", "nowhere-{00..02}.tar"])
def test_missing_file(tmp_path, name):
    with pytest.raises(DataError, match=r"nowhere.*: no (such )?file"):
        check_source(source(tmp_path / name))


@pytest.mark.parametrize("text", ["", "Image Path,raw_caption\n"])
def test_empty_list(tmp_path, text):
    with pytest.raises(DataError, match=r"list\.csv: (the file is empty|no row)"):
        check_source(source(write(tmp_path / "list.csv", text)))


@pytest.mark.parametrize("name", ["list.jsonl", "list.tsv", "list.json", "list.csv.gz"])
def test_empty_files_of_other_kinds(tmp_path, name):
    path = write(tmp_path / name, gzip.compress(b"") if name.endswith("gz") else "")
    with pytest.raises(DataError, match="the file is empty"):
        check_source(source(path))


def test_missing_url_column_names_what_is_there(tmp_path):
    path = write(tmp_path / "list.csv", "link,raw_caption\nhttp://a/b,A dog.\n")
    with pytest.raises(DataError, match="no URL column; columns are: link, raw_caption; name"):
        check_source(source(path))


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl", "list.parquet"])
def test_a_wrong_url_column_gets_the_nearest_suggested(tmp_path, name):
    path = tmp_path / name
    if name.endswith("csv"):
        write(path, "Image Path,raw_caption\nhttp://a/b,A dog.\n")
    elif name.endswith("jsonl"):
        write(path, '{"Image Path": "http://a/b", "raw_caption": "A dog."}\n')
    else:
        pq.write_table(pa.table({"Image Path": ["http://a/b"], "raw_caption": ["A dog."]}), path)
    with pytest.raises(DataError, match="no URL column 'image_pth'; did you mean 'Image Path'"):
        check_source(source(path, url_column="image_pth"))
    with pytest.raises(DataError, match="raw_captoin; did you mean 'raw_caption'"):
        check_source(source(path, caption_columns={"raw_captoin": "raw"}))


def test_missing_caption_column_names_what_is_there(tmp_path):
    path = write(tmp_path / "list.csv", "Image Path,words\nhttp://a/b,A dog.\n")
    with pytest.raises(DataError, match="no caption column; columns are: Image Path, words"):
        check_source(source(path))


def test_a_column_that_is_there_twice(tmp_path):
    path = write(tmp_path / "list.csv", "url,caption,caption\nhttp://a/b,A dog.,A cat.\n")
    with pytest.raises(DataError, match="two columns are named 'caption'"):
        check_source(source(path))


def test_a_list_without_a_header(tmp_path):
    (row,) = read_rows(source(write(tmp_path / "list.csv", "http://a/b,A dog.\n")))
    assert (row["url"], captions_of(row)) == ("http://a/b", {"caption": ["A dog."]})
    wide = source(write(tmp_path / "wide.csv", "http://a/b,A dog.,3\n"))
    with pytest.raises(DataError, match="no header: the first line has a URL"):
        check_source(wide)
    named = wide.model_copy(
        update={"url_column": "column_1", "caption_columns": {"column_2": "raw"}}
    )
    (row,) = read_rows(named)
    assert captions_of(row) == {"column_2": ["A dog."]}


def test_numbers_where_texts_are_due(tmp_path):
    table = pa.table({"url": ["http://a/b"], "caption": [[{"x": 1}]]})
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"'caption' holds list<.*texts are due"):
        check_source(source(tmp_path / "list.parquet"))


@pytest.mark.parametrize("data", [b"PAR1 this is no Parquet PAR1", b"", b"PAR1"])
def test_corrupt_parquet(tmp_path, data):
    path = write(tmp_path / "list.parquet", data)
    with pytest.raises(DataError, match=r"list\.parquet: (corrupt Parquet|the file is empty)"):
        check_source(source(path))


@pytest.mark.parametrize("name", ["list.xlsx", "list", "list.txt"])
def test_unknown_kind_of_file(tmp_path, name):
    with pytest.raises(DataError, match=r"not a \.csv, \.tsv|a \.txt says nothing"):
        check_source(source(write(tmp_path / name, "a")))


def test_settings_that_a_kind_has_no_use_for(tmp_path):
    path = write(tmp_path / "list.json", '[{"image": "a.jpg", "conversations": []}]')
    with pytest.raises(DataError, match="url_column is set, but a sharegpt4v"):
        check_source(source(path, url_column="image"))


def test_dreamlips_columns_with_their_kinds(tmp_path):
    with open(tmp_path / "list.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([DREAMLIP_URL_COLUMN, *DREAMLIP_CAPTION_COLUMNS])
        writer.writerow(["https://a/1.jpg", *DREAMLIP_CAPTION_COLUMNS])
    config = source(tmp_path / "list.csv", split="x")
    assert detect_kind(config) == "table"
    (table,) = read_tables(config)
    assert table.schema.equals(RAW_SCHEMA)
    (row,) = read_rows(config)
    kinds = {entry["texts"][0]: entry["kind"] for entry in row["texts"]}
    assert kinds == DREAMLIP_CAPTION_COLUMNS
    assert (row["split"], row["source"], row["reason"], row["data"]) == ("x", "list", None, None)
    assert len(row["key"]) == 32
    assert row["texts"][1]["source"] == "shortIB"


def test_cells_that_spell_lists_and_plain_texts(tmp_path):
    spelled = json.dumps(["A dog.", "A cat."]).replace('"', '""')
    text = (
        "Image Path,raw_caption,shortIB_captions,longSV_captions\n"
        f'http://a/1,A dog,"{spelled}","Two dogs. They\nrun."\n'
        "http://a/2,,\"['One, two.', 'Three.']\",\n"
        "http://a/3,,,\n"
        "http://a/4,[a square],,\n"
    )
    rows = read_rows(source(write(tmp_path / "list.csv", text)))
    assert [entry["texts"] for entry in rows[0]["texts"]] == [
        ["A dog"],
        ["A dog.", "A cat."],
        ["Two dogs. They\nrun."],
    ]
    assert [entry["kind"] for entry in rows[0]["texts"]] == ["raw", "short", "long"]
    assert rows[1]["texts"][0]["texts"] == ["One, two.", "Three."]
    assert rows[2]["reason"] == "no_caption"
    assert captions_of(rows[3]) == {"raw_caption": ["[a square]"]}


def test_lists_in_parquet_and_own_column_names(tmp_path):
    table = pa.table({"u": ["http://a/b"], "t": [["A dog.", "A cat."]], "n": [0.25], "x": [1]})
    pq.write_table(table, tmp_path / "list.parquet")
    mapped = source(tmp_path / "list.parquet", url_column="u", caption_columns={"t": "long"})
    (row,) = read_rows(mapped, ["n", "nowhere"])
    assert row["url"] == "http://a/b"
    assert row["columns"] == {"n": "0.25"}
    assert row["texts"] == [
        {"source": "t", "kind": "long", "texts": ["A dog.", "A cat."], "sentences": False}
    ]


@pytest.mark.parametrize("kind", ["large", "dictionary", "nulls"])
def test_parquet_columns_of_other_types(tmp_path, kind):
    urls = pa.array(["http://a/1", None], pa.string())
    texts = pa.array([["A dog."], None], pa.large_list(pa.large_string()))
    if kind == "dictionary":
        urls, texts = urls.dictionary_encode(), pa.array(["A dog.", None]).dictionary_encode()
    if kind == "nulls":
        texts = pa.array([["A dog."], None], pa.list_(pa.string()))
    pq.write_table(pa.table({"URL": urls, "TEXT": texts}), tmp_path / "list.parquet")
    rows = read_rows(source(tmp_path / "list.parquet"))
    assert captions_of(rows[0]) == {"TEXT": ["A dog."]}
    assert reasons_of(rows) == [None, "bad_url"]


def test_the_published_layouts_of_cc3m_and_cc12m(tmp_path):
    quoted = '" a dog , he said " and\thttp://a/1.jpg\n"unclosed\thttp://a/2.jpg\n'
    cc3m = source(write(tmp_path / "Train_GCC-training.tsv", quoted))
    assert detect_kind(cc3m) == "cc3m"
    assert [row["url"] for row in read_rows(cc3m)] == ["http://a/1.jpg", "http://a/2.jpg"]
    assert captions_of(read_rows(cc3m)[0]) == {"caption": ['" a dog , he said " and']}
    cc12m = source(write(tmp_path / "cc12m.tsv", "http://a/1.jpg\tA dog\nhttp://a/2\tb\tc\n"))
    assert detect_kind(cc12m) == "cc12m"
    first, second = read_rows(cc12m)
    assert captions_of(first) == {"caption": ["A dog"]}
    assert second["reason"] == "bad_row"
    assert "row 2: 3 columns, 2 are due: http://a/2\tb\tc" in second["detail"]


def test_jsonl_with_texts_lists_and_broken_lines(tmp_path):
    lines = [
        '{"image_url": "http://a/1", "captions": ["A dog.", "A cat."], "nsfw": 0.5, "t": [1]}',
        '{"image_url": "http://a/2", "captions": "One text.", "nsfw": "low"}',
        "",
        "no JSON",
        '["http://a/3"]',
        '{"captions": ["No URL."]}',
        r'{"image_url": "http://a/4", "captions": ["half \ud83d pair"], "nsfw": null}',
    ]
    path = write(tmp_path / "list.jsonl", "\n".join(lines) + "\n")
    rows = read_rows(source(path), ["nsfw"])
    assert reasons_of(rows) == [None, None, "bad_url", None, "bad_row", "bad_row"]
    assert [captions_of(row).get("captions") for row in rows[:4]] == [
        ["A dog.", "A cat."],
        ["One text."],
        ["No URL."],
        ["half  pair"],
    ]
    assert [row["columns"].get("nsfw") for row in rows[:2]] == ["0.5", "low"]
    assert "line 4: no JSON object: no JSON" in rows[4]["detail"]


def test_jsonl_of_one_type_and_without_a_last_line_break(tmp_path):
    lines = [json.dumps({"url": f"http://a/{n}", "text": f"Dog {n}.", "n": n}) for n in range(500)]
    rows = read_rows(source(write(tmp_path / "list.jsonl", "\n".join(lines))), ["n"])
    assert [(row["url"], row["columns"]["n"]) for row in rows] == [
        (f"http://a/{n}", str(n)) for n in range(500)
    ]


def test_no_json_at_all(tmp_path):
    with pytest.raises(DataError, match="no JSON object in its first lines"):
        check_source(source(write(tmp_path / "list.jsonl", "url,caption\nhttp://a,b\n")))


def test_sharegpt4v_with_paths_below_its_folder(tmp_path):
    entries = [
        {
            "id": 1,
            "image": "coco/train2017/1.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe it."},
                {"from": "gpt", "value": "A dog. It runs."},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "It likes to."},
            ],
        },
        {"id": 2, "conversations": [{"from": "gpt", "value": "No image."}]},
        {"id": 3, "image": "../../etc/passwd", "conversations": []},
        {"id": 4, "image": "2.jpg", "conversations": [None, {"from": "gpt", "value": 3}]},
        "text",
    ]
    path = write(tmp_path / "sharegpt4v.json", json.dumps(entries, indent=1))
    assert detect_kind(source(path)) == "sharegpt4v"
    rows = read_rows(source(path))
    assert reasons_of(rows) == [None, "bad_row", "bad_url", "no_caption", "bad_row"]
    assert rows[0]["url"] == f"{tmp_path}/coco/train2017/1.jpg"
    assert captions_of(rows[0]) == {"sharegpt4v": ["A dog. It runs."]}
    assert rows[0]["texts"][0]["kind"] == "long"
    (first, *_) = read_rows(source(path, image_root="https://host/images/"))
    assert first["url"] == "https://host/images/coco/train2017/1.jpg"


def test_broken_json_names_the_entry(tmp_path):
    entry = json.dumps({"image": "1.jpg", "conversations": []})
    path = write(tmp_path / "list.json", f"[{entry},\n{entry},\n" + '{"image": "2')
    with pytest.raises(DataError, match="broken JSON after entry 2"):
        check_source(source(path))


@pytest.mark.parametrize("name", ["list.csv.gz", "list.csv.zst", "list.jsonl.gz"])
def test_compressed_lists(tmp_path, name):
    text = '{"url": "http://a/1", "text": "A dog."}\n'
    if "csv" in name:
        text = "url,text\nhttp://a/1,A dog.\n"
    codec = pa.Codec("gzip" if name.endswith("gz") else "zstd")
    path = write(tmp_path / name, codec.compress(text.encode(), asbytes=True))
    (row,) = read_rows(source(path))
    assert captions_of(row) == {"text": ["A dog."]}


def test_a_compressed_list_that_is_cut_off(tmp_path):
    text = "url,text\n" + "".join(f"http://a/{n},Dog {hash(n * 1.5)}.\n" for n in range(5000))
    data = gzip.compress(text.encode())
    path = write(tmp_path / "list.csv.gz", data[: len(data) // 2])
    with pytest.raises(DataError, match=r"list\.csv\.gz: cannot be read"):
        read_rows(source(path))


def test_several_files_by_folder_glob_and_braces(tmp_path):
    for n in range(3):
        write(tmp_path / f"part-{n:02d}.csv", f"url,text\nhttp://a/{n},Dog.\n")
    write(tmp_path / "below/part-03.csv", "url,text\nhttp://a/3,Dog.\n")
    for pattern, expected in (
        ("", [0, 1, 2]),
        ("part-*.csv", [0, 1, 2]),
        ("**/part-*.csv", [3, 0, 1, 2]),
        ("part-{01..02}.csv", [1, 2]),
        ("part-{00,02}.csv", [0, 2]),
        ("part-0[12].csv", [1, 2]),
    ):
        rows = read_rows(source(tmp_path / pattern))
        assert [row["url"] for row in rows] == [f"http://a/{n}" for n in expected], pattern
    identity = source_identity(source(tmp_path))
    write(tmp_path / "part-01.csv", "url,text\nhttp://a/1,Dogs.\n")
    assert source_identity(source(tmp_path)) != identity


def test_which_places_a_list_may_name(tmp_path):
    urls = [
        "http://a/1.jpg",
        " HTTPS://a/2.jpg ",
        "folder/3.jpg",
        f"{tmp_path}/images/4.jpg",
        "",
        "ftp://a/5.jpg",
        "http:///6.jpg",
        "../7.jpg",
        "folder/../../8.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
        "s3://bucket/9.jpg",
        "x::memory://10.jpg",
        f"{tmp_path}/images/../11.jpg",
        "//host/12.jpg",
    ]
    text = "url,text\n" + "".join(f"{url},Dog.\n" for url in urls)
    path = write(tmp_path / "list.csv", text)
    rows = read_rows(source(path, image_root=f"{tmp_path}/images"))
    assert [row["url"] for row in rows[:4]] == [
        "http://a/1.jpg",
        "HTTPS://a/2.jpg",
        f"{tmp_path}/images/folder/3.jpg",
        f"{tmp_path}/images/4.jpg",
    ]
    assert reasons_of(rows) == [None] * 4 + ["bad_url"] * 11


def test_bytes_that_are_no_text_cost_their_row(tmp_path):
    path = write(
        tmp_path / "list.csv", b"\xef\xbb\xbfurl,text\nhttp://a/1,caf\xe9\nhttp://a/2,ok\n"
    )
    rows = read_rows(source(path))
    assert [row["reason"] for row in rows] == ["bad_text", None]
    assert "text: bytes that are not text of its encoding, at character 4" in rows[0]["detail"]


# What `clean_text` changes has tests of its own.
TEXTS = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="&\ufffd")
    | st.sampled_from(" \n"),
    max_size=30,
).filter(lambda text: text.strip()[:1] not in tuple("[({") and clean_text(text, set()) != "")


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20))
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_what_csv_writes_is_read_back(tmp_path_factory, delimiter, rows):
    path = tmp_path_factory.mktemp("csv") / ("list.csv" if delimiter == "," else "list.tsv")
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(["raw_caption", "url", "long_captions"])
        writer.writerows([a, f"http://a/{n}", b] for n, (a, b) in enumerate(rows))
    read = read_rows(source(path))
    assert [row["url"] for row in read] == [f"http://a/{n}" for n in range(len(rows))]
    for row, (raw, long) in zip(read, rows, strict=True):
        found = captions_of(row)
        assert found.get("raw_caption", [""]) == [raw.strip()]
        assert found.get("long", [""]) == [long.strip()]
