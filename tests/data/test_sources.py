"""Source lists: what is read, and the one clear line for each that cannot be."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.sources import check_source, read_source


def source(path, **changes) -> SourceConfig:
    return SourceConfig(name="list", path=str(path), **changes)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        check_source(source(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize("text", ["", "Image Path,raw_caption\n"])
def test_empty_list(tmp_path, text):
    with pytest.raises(DataError, match=r"list\.csv: (the file is empty|no row)"):
        check_source(source(write(tmp_path / "list.csv", text)))


def test_missing_url_column_names_what_is_there(tmp_path):
    path = write(tmp_path / "list.csv", "link,raw_caption\nhttp://a/b,A dog.\n")
    with pytest.raises(DataError, match="no URL column 'Image Path'; columns are: link, raw"):
        check_source(source(path))


def test_missing_caption_column_names_what_was_looked_for(tmp_path):
    path = write(tmp_path / "list.csv", "Image Path,text\nhttp://a/b,A dog.\n")
    with pytest.raises(DataError, match="no caption column; looked for raw_caption"):
        check_source(source(path))


def test_strings_where_a_list_is_due(tmp_path):
    table = pa.table({"Image Path": ["http://a/b"], "longSV_captions": ["A dog. A cat."]})
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(DataError, match="'longSV_captions' holds strings, a list"):
        check_source(source(tmp_path / "list.parquet"))


def test_corrupt_parquet(tmp_path):
    path = tmp_path / "list.parquet"
    path.write_bytes(b"PAR1 this is no Parquet PAR1")
    with pytest.raises(DataError, match=r"list\.parquet: corrupt Parquet"):
        check_source(source(path))


def test_unknown_kind_of_file(tmp_path):
    with pytest.raises(DataError, match=r"not a \.csv, \.tsv or \.parquet file"):
        check_source(source(write(tmp_path / "list.xlsx", "a")))


def test_cells_that_spell_lists_and_plain_texts(tmp_path):
    spelled = json.dumps(["A dog.", "A cat."]).replace('"', '""')
    text = (
        "Image Path,raw_caption,shortIB_captions,longSV_captions\n"
        f'http://a/1,A dog,"{spelled}","Two dogs. They\nrun."\n'
        "http://a/2,,\"['One, two.', 'Three.']\",\n"
        "http://a/3,,,\n"
    )
    rows = list(read_source(source(write(tmp_path / "list.csv", text))))
    assert [entry["texts"] for entry in rows[0]["texts"]] == [
        ["A dog"],
        ["A dog.", "A cat."],
        ["Two dogs. They\nrun."],
    ]
    assert [entry["kind"] for entry in rows[0]["texts"]] == ["raw", "short", "long"]
    assert rows[1]["texts"][0]["texts"] == ["One, two.", "Three."]
    assert rows[2]["reason"] == "no_caption"


def test_lists_in_parquet_and_own_column_names(tmp_path):
    table = pa.table({"u": ["http://a/b"], "t": [["A dog.", "A cat."]]})
    pq.write_table(table, tmp_path / "list.parquet")
    mapped = source(tmp_path / "list.parquet", url_column="u", caption_columns={"t": "long"})
    (row,) = read_source(mapped)
    assert row["url"] == "http://a/b"
    assert row["texts"] == [{"source": "t", "kind": "long", "texts": ["A dog.", "A cat."]}]
