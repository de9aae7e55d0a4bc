"""A list of images and captions is a benchmark without code, whatever it is written in; what is
wrong with it is one line that names the list, the row and the field, before anything is encoded."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import published_sets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from caft.config import load_config, to_yaml
from caft.errors import ConfigError, DataError
from caft.metrics import retrieval_recall
from pipelines import storage
from pipelines.config import stage_main
from pipelines.evaluate.check_data import check_data
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.stage import open_benchmarks, run

ROWS = [
    {"image_file": f"{split}/{n}.jpg", "split": split, "short": f"Kite {n}.", "long": text}
    for n, (split, text) in enumerate(
        [
            ("test", 'A "red" kite,\nover a hill. Two people hold it.'),
            ("train", "A dog."),
            ("test", "Café. Näher."),
            ("test", "A\ttram. It waits."),
        ]
    )
]
OWN = {"name": "mine", "image": "image_file", "captions": ["short", "long"]}
OWN |= {"split": {"field": "split", "is": "test"}}


def delimited(delimiter):
    def write(path, rows):
        with open(path, "w", newline="", encoding="utf-8") as file:
            names = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, names, delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)

    return write


def as_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows))


def as_json(path, rows):
    path.write_text(json.dumps(rows))


def as_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


WRITERS = {
    ".csv": delimited(","),
    ".tsv": delimited("\t"),
    ".jsonl": as_lines,
    ".json": as_json,
    ".parquet": as_parquet,
}
every_kind = pytest.mark.parametrize("ending", WRITERS)


def write(folder, ending, rows):
    """The list, and a picture for each row below `images`; the list's path."""
    folder.mkdir(exist_ok=True)
    for n, row in enumerate(rows):
        name = row.get("image_file")
        if isinstance(name, str) and name and name[0] != "/" and ".." not in name:
            published_sets.write_image(folder / "images" / name, n)
    path = folder / f"captions{ending}"
    WRITERS[ending](path, rows)
    return path


def stage(tmp_path, *benchmarks, **more):
    raw = {"checkpoint": "x", "output": "y", "data": str(tmp_path), "benchmarks": list(benchmarks)}
    path = tmp_path / "evaluate.yaml"
    path.write_text(yaml.safe_dump(raw | more))
    return load_config(EvaluateConfig, path, [])


def opened(tmp_path, **own):
    (benchmark,) = open_benchmarks(stage(tmp_path, OWN | own))
    return benchmark


def refusal(tmp_path, **own):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, **own)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("benchmarks.0 'mine': ")
    return message


@every_kind
def test_a_list_of_any_kind_gives_its_images_with_all_their_captions(tmp_path, ending):
    path = write(tmp_path, ending, ROWS)
    found = opened(tmp_path, list=path.name, images=["images"], count=3)
    mine = [row for row in ROWS if row["split"] == "test"]
    assert [Path(url) for url in found.urls] == [
        tmp_path / "images" / r["image_file"] for r in mine
    ]
    assert found.captions == tuple(text for row in mine for text in (row["short"], row["long"]))
    assert found.text_to_image == (0, 0, 1, 1, 2, 2)
    rows = [row for piece in found.pieces for row in found.rows.read(piece)]
    assert [row["image"] for row in rows] == [Path(url).read_bytes() for url in found.urls]
    assert found.split == "test"
    if ending != ".parquet":  # may be compressed as its name says
        packed = Path(f"{path}.gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert opened(tmp_path, list=packed.name, images=["images"]).captions == found.captions


@every_kind
def test_lists_and_images_lie_in_buckets_too(tmp_path, bucket, ending):
    path = write(tmp_path, ending, ROWS)
    storage.write_bytes(f"{bucket}/sets/{path.name}", path.read_bytes())
    for row in ROWS:
        image = (tmp_path / "images" / row["image_file"]).read_bytes()
        storage.write_bytes(f"{bucket}/sets/{row['image_file']}", image)
    here = opened(tmp_path, list=path.name, images=["images"])
    there = opened(tmp_path, list=f"{bucket}/sets/{path.name}")  # images beside the list
    assert there.captions == here.captions
    assert there.fingerprint == here.fingerprint
    assert [url.startswith(f"{bucket}/sets/test/") for url in there.urls] == [True] * 3
    assert (
        there.rows.read(there.pieces[0])[0]["image"] == here.rows.read(here.pieces[0])[0]["image"]
    )


@every_kind
def test_rows_of_one_image_are_one_image_with_several_captions(tmp_path, ending):
    names = ["a.jpg", "b.jpg", "a.jpg", "./a.jpg"]
    rows = [{"image_file": name, "caption": f"Kite {n}."} for n, name in enumerate(names)]
    path = write(tmp_path, ending, rows)
    own = {"list": path.name, "images": ["images"], "captions": "caption", "split": None}
    found = opened(tmp_path, **own, count=2)
    assert [Path(url).name for url in found.urls] == ["a.jpg", "b.jpg"]
    assert found.captions == ("Kite 0.", "Kite 2.", "Kite 3.", "Kite 1.")
    assert found.text_to_image == (0, 0, 0, 1)
    # Any of an image's captions is right for it, and the image is right for each of them.
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.3], [0.2, 0.1, 0.4, 0.8]])  # (images, texts)
    recall = retrieval_recall(scores, torch.tensor(found.text_to_image))
    assert recall["i2t_r1"] == 1.0
    assert recall["t2i_r1"] == pytest.approx(0.5)
    assert "2 images with 4 captions, benchmarks.0.count is 4" in refusal(tmp_path, **own, count=4)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_dotted_names_reach_into_records(tmp_path, ending):
    rows = [
        {
            "image_file": "x.jpg",
            "info": {"image": {"path": f"{n}.jpg"}, "part": "test" if n else "dev"},
            "turns": [{"text": "Describe."}, {"text": f"Answer {n}."}],
            "said": [{"raw": f"One {n}."}, {"raw": f"Two {n}."}],
            "a.b": f"Dots {n}.",
        }
        for n in range(3)
    ]
    path = write(tmp_path, ending, rows)
    for n in range(3):
        published_sets.write_image(tmp_path / "images" / f"{n}.jpg", n)
    found = opened(
        tmp_path,
        list=path.name,
        images=["images"],
        image="info.image.path",
        captions=["turns.1.text", "said.raw", "a.b"],
        split={"field": "info.part", "is": ["test"]},
    )
    assert found.captions[:4] == ("Answer 1.", "One 1.", "Two 1.", "Dots 1.")
    assert found.text_to_image == (0, 0, 0, 0, 1, 1, 1, 1)


@every_kind
def test_several_captions_in_a_field_and_several_fields_in_a_caption(tmp_path, ending):
    texts = ["One, two.", "Three."]
    cell = json.dumps(texts) if ending in (".csv", ".tsv") else texts
    path = write(tmp_path, ending, [{"image_file": "1.jpg", "texts": cell, "a": "A.", "b": "B."}])
    captions = ["texts", ["a", "b"]]
    found = opened(tmp_path, list=path.name, images=["images"], captions=captions, split=None)
    assert found.captions == ("One, two.", "Three.", "A.\nB.")


def test_records_of_an_object_are_under_a_key(tmp_path):
    path = write(tmp_path, ".json", ROWS)
    path.write_text(json.dumps({"version": 1, "images": ROWS, "tags": ["a"]}))
    own = {"list": path.name, "images": ["images"]}
    assert len(opened(tmp_path, **own).urls) == 3
    path.write_text(json.dumps({"data": {"images": ROWS}}))
    assert len(opened(tmp_path, **own, records="data.images").urls) == 3
    assert "captions.json: no 'date', there are data;" in refusal(tmp_path, **own, records="date.x")
    path.write_text(json.dumps({"images": ROWS, "other": ROWS}))
    assert "lists under images, other; name one in 'records'" in refusal(tmp_path, **own)
    path.write_text(json.dumps({"1.jpg": "A kite."}))
    assert "captions.json: a list is due, got an object" in refusal(tmp_path, **own)


def changed(place, **fields):
    return [row | fields if n == place else row for n, row in enumerate(ROWS)]


PLACES = {".csv": "row", ".tsv": "row", ".jsonl": "line", ".json": "entry", ".parquet": "row"}


@every_kind
def test_what_is_wrong_names_list_row_and_field(tmp_path, ending):
    def refused(rows, **own):
        shutil.rmtree(tmp_path / "images", ignore_errors=True)
        path = write(tmp_path, ending, rows)
        message = refusal(tmp_path, **{"list": path.name, "images": ["images"], **own})
        assert str(path) in message
        return message

    place = f"captions{ending}: {PLACES[ending]} {5 if ending == '.jsonl' else 3}"
    empty = refused(changed(2, long="  "))
    assert f"{place}: 'long' is empty" in empty
    assert f"{place}: 'image_file' is empty" in refused(changed(2, image_file=""))
    assert f"{place}: caption '. .' holds no words" in refused(changed(2, long=". ."))
    for outside in ("../secret.jpg", "/etc/passwd", "test/../../secret.jpg"):
        escaped = refused(changed(2, image_file=outside))
        assert f"{place}: 'image_file' {outside} leads out of the image folders" in escaped
    assert "no 'lang', there are " in refused(ROWS, captions=["short", "lang"])
    assert "no 'image', there are image_file" in refused(ROWS, image="image")
    nowhere = refused(ROWS, split={"field": "split", "is": ["test", "tset"]})
    assert "no row has split 'tset', there are test (3), train (1)" in nowhere
    assert "no 'part', there are image_file" in refused(ROWS, split={"field": "part", "is": "a"})
    counted = refused(ROWS, count=1000)
    assert "3 images with 6 captions, benchmarks.0.count is 1,000 images" in counted
    path = write(tmp_path, ending, ROWS)
    for damage in (Path.unlink, lambda file: file.write_bytes(b"")):
        damage(tmp_path / "images" / "test" / "2.jpg")
        message = refusal(tmp_path, list=path.name, images=["images"])
        assert f"{place}: 'image_file' test/2.jpg is no file with content in" in message


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", b"image,caption\n1.jpg\n", "row 1: 1 cells, the header names 2 columns"),
        ("l.csv", b"image,caption\n1.jpg,a,b\n", "row 1: 3 cells, the header names 2 columns"),
        ("l.csv", b'image,caption\n1.jpg,"open\n', "row 1, line 2: broken quotes"),
        ("l.csv", b"image,caption,caption\n", "two columns are named 'caption'"),
        ("l.csv", b"image,caption\n", "no row in it"),
        ("l.csv", b"image,caption\n1.jpg,caf\xe9\n", "not UTF-8"),
        ("l.jsonl", b'{"image": 1}\n', "line 1: 'image' is int, str is due"),
        ("l.jsonl", b'{"image": "1.jpg", "caption": 2}\n', "'caption' is int, str or a list"),
        ("l.jsonl", b'{"image": "1.jpg", "caption": null}', "'caption' is NoneType, str or a list"),
        ("l.jsonl", b'{"image": "1.jpg", "caption": []}\n', "line 1: 'caption' is empty"),
        ("l.jsonl", b'{"image": "1.jpg"}\n{"image"\n', "line 1: no 'caption', there are image"),
        ("l.jsonl", b'["1.jpg"]\n', "line 1: entry 0: an object with 'image' is due, got str"),
        ("l.json", b'[{"image": "1.jpg"', "broken JSON"),
        ("l.json", b"12", "a list is due, got int"),
        ("l.json", b"", "the file is empty"),
        ("l.parquet", b"PAR1", "corrupt Parquet"),
        ("l.txt", b"1.jpg a kite", "no list of a kind that is known: .csv, .tsv, .jsonl"),
        ("none.csv", None, "no such file"),
    ],
)
def test_a_broken_list_is_one_line(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_bytes(text)
    message = refusal(tmp_path, list=name, image="image", captions="caption", split=None)
    assert str(tmp_path / name) in message
    assert said in message


def test_two_names_for_one_file_are_not_two_images(tmp_path):
    rows = [{"image_file": name, "caption": "A kite."} for name in ("a/1.jpg", "b/1.jpg")]
    path = write(tmp_path, ".jsonl", rows)
    shutil.move(tmp_path / "images" / "a" / "1.jpg", tmp_path / "images" / "1.jpg")
    shutil.rmtree(tmp_path / "images" / "b")
    own = {"list": path.name, "images": ["images"], "captions": "caption", "split": None}
    assert "b/1.jpg and a/1.jpg are both found as" in refusal(tmp_path, **own)


def test_the_configuration_is_stored_as_it_was_written(tmp_path):
    config = stage(tmp_path, OWN | {"list": "l.csv", "split": {"field": "part", "is": [1, True]}})
    written = yaml.safe_load(to_yaml(config))
    assert written["benchmarks"][0]["split"] == {"field": "part", "is": ["1", "true"]}
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_config(EvaluateConfig, again, []) == config
    with pytest.raises(ConfigError, match=r"split\.iss: unknown key; the nearest one is 'is'"):
        stage(tmp_path, OWN | {"list": "l.csv", "split": {"field": "part", "iss": "a"}})
    with pytest.raises(ConfigError, match=r"captions: name at least one field"):
        stage(tmp_path, OWN | {"list": "l.csv", "captions": []})


def test_check_data_says_what_a_list_holds(tmp_path, capsys):
    path = write(tmp_path, ".csv", ROWS)
    stage(tmp_path, OWN | {"list": path.name, "images": ["images"]})
    argv = [str(tmp_path / "evaluate.yaml"), "--check-data"]
    assert stage_main(EvaluateConfig, run, argv, check_data) == 0
    assert "complete  mine\n          3 images with 6 captions in " in capsys.readouterr().out
    (tmp_path / "images" / "test" / "0.jpg").write_bytes(b"")
    assert stage_main(EvaluateConfig, run, argv, check_data) == 1
    assert "row 1: 'image_file' test/0.jpg is no file with content" in capsys.readouterr().out
