"""Lists in every encoding: read, or refused by a line that names the encoding to set."""

import json

import pyarrow as pa
import pytest
from sources_support import captions_of, image_bytes, read_rows, source, tar_bytes, write

from caft.errors import DataError
from pipelines.data.sources import list_containers, read_container
from pipelines.data.sources.check import check_source
from pipelines.data.sources.encodings import guess_encoding

TEXTS = {
    "cp1252": "Un café près de la forêt, “déjà” vu – l’été…",
    "cp1250": "Pies biegnie przez łąkę, źródło światła.",
    "cp1251": "Собака бежит по парку рядом с деревом.",
    "koi8_r": "Собака бежит по парку рядом с деревом.",
    "cp1253": "Ένας σκύλος τρέχει στο πάρκο.",
    "cp1254": "Bir köpek parkta koşuyor, güneş ışığı.",
    "cp1255": "כלב רץ בפארק ליד עץ",
    "cp1256": "كلب يركض في الحديقة",
    "cp874": "สุนัขวิ่งในสวน",
    "gb18030": "一只狗在公园里奔跑，天气很好。",
    "big5": "一隻狗在公園裡奔跑，天氣很好。",
    "cp932": "公園で犬が走っています。とても大きいです。",
    "euc_jp": "公園で犬が走っています。とても大きいです。",
    "cp949": "공원에서 개가 달리고 있습니다.",
    "mac_roman": "Un café près de la forêt.",
}


def as_csv(text):
    return "url,caption\n" + "".join(f'http://a/{n}.jpg,"{text}"\n' for n in range(4))


def as_jsonl(text):
    rows = ({"url": f"http://a/{n}.jpg", "caption": text} for n in range(4))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_array(text):
    return "[" + ",\n".join(as_jsonl(text).splitlines()) + "]"


FORMS = {"csv": as_csv, "jsonl": as_jsonl, "json": as_array}


@pytest.mark.parametrize("encoding", TEXTS)
def test_the_encoding_to_set_is_named_and_reads_the_list(tmp_path, encoding):
    for ending, form in FORMS.items():
        text = TEXTS[encoding]
        path = write(tmp_path / f"list.{ending}", form(text).encode(encoding))
        with pytest.raises(DataError, match=rf"lines are not UTF-8.*set encoding: {encoding}$"):
            check_source(source(path))
        config = source(path, encoding=encoding)
        check_source(config)
        assert [captions_of(row)["caption"] for row in read_rows(config)] == [[text]] * 4


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_that_the_bytes_tell_are_read(tmp_path, encoding):
    for ending, form in FORMS.items():
        path = write(tmp_path / f"list.{ending}", form("Ünï 犬 dog.").encode(encoding))
        check_source(source(path))
        rows = read_rows(source(path))
        assert [row["reason"] for row in rows] == [None] * 4
        assert captions_of(rows[0]) == {"caption": ["Ünï 犬 dog."]}
        assert rows[0]["url"] == "http://a/0.jpg"


def test_the_refusal_says_how_many_rows_and_which_byte(tmp_path):
    path = write(tmp_path / "list.csv", as_csv("Un café.").encode("latin-1"))
    with pytest.raises(DataError) as error:
        check_source(source(path))
    at = path.read_bytes().index(b"\xe9")
    assert f"4 of its first 5 lines are not UTF-8, the first at byte {at} (0xe9)" in str(
        error.value
    )


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_one_bad_byte_costs_its_row_alone(tmp_path, ending):
    if ending == "parquet":
        texts = [f"Un café {n}.".encode() for n in range(20)]
        texts[11] = b"Un caf\xe9 11."
        raw = pa.array(texts, pa.binary())
        # As writers that check nothing leave it: a column of strings whose bytes are none.
        strings = pa.StringArray.from_buffers(20, raw.buffers()[1], raw.buffers()[2])
        table = pa.table({"url": [f"http://a/{n}" for n in range(20)], "caption": strings})
        pa.parquet.write_table(table, tmp_path / "list.parquet")
        path = tmp_path / "list.parquet"
    else:
        rows = [{"url": f"http://a/{n}", "caption": f"Un café {n}."} for n in range(20)]
        lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
        if ending == "csv":
            lines = [b"url,caption", *(f"http://a/{n},Un café {n}.".encode() for n in range(20))]
        place = 11 + (ending == "csv")
        lines[place] = lines[place].replace("é".encode(), b"\xe9")
        data = b"[" + b",\n".join(lines) + b"]" if ending == "json" else b"\n".join(lines)
        path = write(tmp_path / f"list.{ending}", data)
    check_source(source(path))
    rows = read_rows(source(path))
    assert [row["reason"] for row in rows] == [None] * 11 + ["bad_text"] + [None] * 8
    assert "caption: bytes that are not text" in rows[11]["detail"]


def test_bad_bytes_in_a_column_that_is_not_used_do_no_harm(tmp_path):
    lines = [b"url,caption,note", b"http://a/1,A dog.,caf\xe9", b"http://a/2,A cat.,x"]
    rows = read_rows(source(write(tmp_path / "list.csv", b"\n".join(lines))))
    assert [row["reason"] for row in rows] == [None, None]


def test_texts_beside_images_in_other_encodings(tmp_path):
    members = []
    for n in range(5):
        members += [(f"{n}.png", image_bytes(n)), (f"{n}.txt", "Un café près".encode("cp1252"))]
    path = write(tmp_path / "a.tar", tar_bytes(members))
    for name, data in members:
        write(tmp_path / "folder" / name, data)
    for place in (path, tmp_path / "folder"):
        with pytest.raises(DataError, match=r"none of its first 5 rows.*set encoding: cp1252"):
            check_source(source(place))
    config = source(path, encoding="cp1252")
    rows = [row for tar in list_containers(config) for row in read_container(tar, config)]
    assert captions_of(rows[0]) == {"txt": ["Un café près"]}
    write(tmp_path / "folder/0.txt", "Ünï".encode("utf-16"))  # as Notepad writes it
    assert captions_of(read_rows(source(tmp_path / "folder"))[0]) == {"txt": ["Ünï"]}


def test_an_unknown_encoding_is_refused():
    with pytest.raises(ValueError, match="encoding"):
        source("list.csv", encoding="utf-9")
    with pytest.raises(ValueError, match="delimiter"):
        source("list.csv", delimiter="--")


def test_a_guess_is_not_made_of_noise():
    assert guess_encoding(bytes(range(128, 256))) != "utf-8"
