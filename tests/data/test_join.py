"""Captions of a list joined to images that are on disk: what is equal, what is counted, memory."""

import json
from dataclasses import replace
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted_server import body, serving
from sources_support import image_bytes, source, tar_bytes, write
from stage_support import picture, read, rejects_of, small_config

from caft.errors import DataError
from pipelines import storage
from pipelines.data.chunk import read_chunk
from pipelines.data.dataset import open_dataset
from pipelines.data.join import sides
from pipelines.data.join.match import attach, captions_path, match
from pipelines.data.join.sides import gather_images, read_captions, scan
from pipelines.data.join.values import file_stem
from pipelines.data.paths import ROWS_PER_CHUNK, Chunk, Layout
from pipelines.data.plan import plan_source
from pipelines.data.probe import draw
from pipelines.data.retry import retry
from pipelines.data.sources.check import check_source
from pipelines.data.stage import run
from pipelines.data.verify import verify


def joined(config, partitions, tmp_path):
    """The rows of a configuration's first source, joined step by step without a cluster; counts."""
    layout, first = Layout(config.output), config.sources[0]
    folder = f"{layout.plan}/join-0"
    planned = plan_source(config, layout, 0)["chunks"]
    chunks = [Chunk(n, 0, **entry) for n, entry in enumerate(planned)]
    read = read_captions(first, 0, folder, partitions)
    for chunk in chunks:
        if chunk.container:
            scan(chunk, first, folder)
    images = gather_images(chunks, first, layout, folder, 0, partitions)
    firsts = [chunk.number * ROWS_PER_CHUNK for chunk in chunks]
    counts = [
        match(first, read["runs"], [images["path"]], n, firsts, folder) for n in range(partitions)
    ]
    rows = []
    for n, chunk in enumerate(chunks):
        attach([chunk], first, layout, folder, n, partitions)
        if chunk.container:
            path = layout.relative(captions_path(layout, chunk))
            chunk = replace(chunk, captions=path)
        rows += read_chunk(chunk, config, layout)
    total = {name: sum(one[name] for one in counts) for name in counts[0]}
    return rows, read, total


@pytest.mark.parametrize("kind", ["tars", "folder", "list"])
@pytest.mark.parametrize("partitions", [1, 7])
def test_every_row_of_both_sides_is_counted(tmp_path, kind, partitions, monkeypatch):
    random = Random(partitions)
    monkeypatch.setattr(sides, "RUN_BYTES", 2_000)
    urls = [f"http://a/{n}.jpg" for n in range(60)]
    have = urls[:50]
    if kind == "list":
        path = write(tmp_path / "images.csv", "\n".join(["url,width", *(f"{u},3" for u in have)]))
    else:
        path = tmp_path / "images"
        samples = [
            [(f"{n:04d}.png", image_bytes()), (f"{n:04d}.json", json.dumps({"url": url}).encode())]
            for n, url in enumerate(have)
        ]
        for n in range(0, 50, 20):
            members = [member for sample in samples[n : n + 20] for member in sample]
            if kind == "tars":
                write(path / f"{n:03d}.tar", tar_bytes(members))
            else:
                for name, data in members:
                    write(path / name, data)
    captioned = [url for url in urls if url not in (urls[3], urls[49])]
    lines = [f'{url},"[""Long of {url}."", ""Two.""]"' for url in captioned]
    lines += [f'{urls[5]},"[""Another.""]"', f"{urls[6]},", f"{urls[7]}"]
    random.shuffle(lines)
    captions = write(tmp_path / "dreamlip.csv", "\n".join(["Image Path,longSV_captions", *lines]))
    config = small_config(
        tmp_path,
        [
            {
                "name": "x",
                "path": str(path),
                "captions_from": {"path": str(captions), "max_bad_share": 1},
            }
        ],
    )
    check_source(config.sources[0])
    rows, read, total = joined(config, partitions, tmp_path)
    assert len(rows) == 50
    reasons = {row["columns"].get("url", row["url"]): row["reason"] for row in rows}
    assert {url for url, reason in reasons.items() if reason} == {urls[3], urls[49]}
    assert set(reasons.values()) == {None, "no_caption_row"}
    texts = {
        row["columns"].get("url", row["url"]): [e["texts"] for e in row["texts"]] for row in rows
    }
    assert texts[urls[4]] == [[f"Long of {urls[4]}.", "Two."]]
    assert sorted(texts[urls[5]]) == [["Another."], [f"Long of {urls[5]}.", "Two."]]
    assert read["rows"] == len(lines)
    assert read["rejected"] == {"no_caption": 1, "bad_row": 1}
    assert total == {"joined": 49, "without_image": 10, "images": 48}
    assert total["joined"] + total["without_image"] + 2 == read["rows"]
    captions.unlink()  # a run that is resumed takes what is there
    again, _, same = joined(config, partitions, tmp_path)
    assert same == total
    assert [row["texts"] for row in again] == [row["texts"] for row in rows]


def test_joined_by_key_by_name_and_by_a_field(tmp_path):
    members = [
        ("000000012.png", image_bytes()),
        (
            "000000012.json",
            json.dumps({"key": "k12", "id": {"a": 1}, "file": "b/x.1.jpg"}).encode(),
        ),
    ]
    tar = write(tmp_path / "a.tar", tar_bytes(members))
    captions = write(
        tmp_path / "c.jsonl",
        "\n".join(
            json.dumps(row)
            for row in [
                {"key": "k12", "name": "/data/x.1.png", "image": "c/000000012.jpg", "text": "By."},
                {"key": "k13", "name": "y.jpg", "image": "c/13.jpg", "text": "Other."},
            ]
        ),
    )
    for n, how in enumerate(
        [
            {"on": "key"},
            {"on": "stem"},
            {"on": "stem", "image_field": "json.file", "column": "name"},
        ]
    ):
        from_list = {"path": str(captions), **how}
        sources = [{"name": "x", "path": str(tar), "captions_from": from_list}]
        config = small_config(tmp_path, sources, output=str(tmp_path / str(n)))
        check_source(config.sources[0])
        (row,), _, total = joined(config, 1, tmp_path)
        assert [entry["texts"] for entry in row["texts"]] == [["By."]], how
        assert total == {"joined": 1, "without_image": 1, "images": 1}
    assert file_stem("http://a/b/x.jpg?y=1.png#z") == file_stem("t.tar::b/x.webp") == "x"
    assert file_stem("000012") == "000012"
    assert file_stem("v1.2") == "v1.2"


def test_what_cannot_be_joined_is_said_before_anything_starts(tmp_path):
    members = [("a.png", image_bytes()), ("a.json", b'{"link": "http://a/a.jpg"}')]
    tar = str(write(tmp_path / "a.tar", tar_bytes(members)))
    captions = str(write(tmp_path / "c.csv", "url,caption\nhttp://a/a.jpg,A dog.\n"))
    with pytest.raises(DataError, match=r"no url to join captions by: .*fields are link.*image_fi"):
        check_source(source(tar, captions_from={"path": captions}))
    check_source(source(tar, captions_from={"path": captions, "image_field": "json.link"}))
    with pytest.raises(DataError, match=r"no URL column 'key'"):
        check_source(source(tar, captions_from={"path": captions, "on": "key"}))
    with pytest.raises(DataError, match=r"captions_from is a webdataset; give a list"):
        check_source(source(tar, captions_from={"path": tar}))
    with pytest.raises(ValueError, match=r"captions_from\.caption_columns"):
        source(tar, captions_from={"path": captions}, caption_columns={"a": "raw"})


def test_an_image_with_a_thousand_caption_rows_is_a_wrong_column(tmp_path):
    tar = write(
        tmp_path / "a.tar", tar_bytes([("a.png", image_bytes()), ("a.json", b'{"key": "1"}')])
    )
    captions = write(tmp_path / "c.csv", "key,caption\n" + "1,A dog.\n" * 1001)
    from_list = {"path": str(captions), "on": "key"}
    config = small_config(tmp_path, [{"name": "x", "path": str(tar), "captions_from": from_list}])
    with pytest.raises(DataError, match=r"1,001 rows have the same key as one image"):
        joined(config, 1, tmp_path)


def test_an_img2dataset_folder_with_dreamlips_captions(ray_cluster, tmp_path):
    """Tars, one large enough to be cut, and the notes beside them; what failed is fetched later."""
    with serving() as server:
        urls = [server.url(f"/{n}.jpg") for n in range(24)]
        rows, members = [], []
        for n, url in enumerate(urls):
            error = {20: "HTTP Error 404: Not Found", 21: "<urlopen error timed out>"}.get(n)
            status = "failed_to_download" if error else "success"
            rows.append((url, "alt text", f"{n:08d}", status, error))
            if not error:
                members += [
                    (f"{n:08d}.jpg", picture(n)),
                    (f"{n:08d}.json", json.dumps({"url": url, "caption": "alt text"}).encode()),
                    (f"{n:08d}.pad", b"\0" * 150_000),
                ]
        write(tmp_path / "images/00000.tar", tar_bytes(members[:60]))
        write(tmp_path / "images/00001.tar", tar_bytes(members[60:]))
        names = ["url", "caption", "key", "status", "error_message"]
        table = pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
        pq.write_table(table, tmp_path / "images/00000.parquet")
        lines = [f'{url},"[""A long caption of {url}. It is long.""]"' for url in urls[1:]]
        lines += ['http://a/none.jpg,"[""Nobody has it.""]"']
        captions = write(tmp_path / "c.csv", "\n".join(["Image Path,longIB_captions", *lines]))
        source = {
            "name": "cc3m",
            "path": str(tmp_path / "images"),
            "captions_from": {"path": str(captions)},
        }
        config = small_config(tmp_path, [source], chunk_mb=1)
        run(config)
        manifest = open_dataset(config.output).manifest
        assert len(storage.read_json(f"{config.output}/plan/plan.json")["chunks"]) == 5
        rejected = {"no_caption_row": 1, "http_4xx": 1, "timeout": 1}
        assert manifest["counts"] == {"input_rows": 24, "kept": 21, "rejected": rejected}
        joined = manifest["sources"]["cc3m"]["texts"]["captions_from"]
        assert joined["rows"] == 24
        assert (joined["joined"], joined["without_image"], joined["rejected"]) == (23, 1, {})
        (sentences,) = {
            tuple(caption["sentences"])
            for entry in open_dataset(config.output).files
            for row in read(f"{config.output}/{entry.name}").to_pylist()
            for caption in row["captions"]
            if urls[7] in caption["sentences"][0]
        }
        assert sentences == (f"A long caption of {urls[7]}", "It is long")
        assert verify(config.output) == []
        server.script["/21.jpg"] = body(picture(21))
        retry(config.output, ["timeout", "http_4xx"])
        counts = open_dataset(config.output).manifest["counts"]
        rejected = {"http_4xx": 1, "no_caption_row": 1}
        assert counts == {"input_rows": 24, "kept": 22, "rejected": rejected}
        assert [row["detail"] for row in rejects_of(config.output) if row["reason"] == "http_4xx"]
        assert verify(config.output) == []


def test_a_list_without_a_row_for_any_image_ends_it_before_the_chunks(ray_cluster, tmp_path):
    members = [("a.png", image_bytes()), ("a.json", b'{"url": "http://a/a.jpg"}')]
    tar = write(tmp_path / "a.tar", tar_bytes(members))
    captions = write(tmp_path / "c.csv", "url,caption\nhttp://b/a.jpg,A dog.\n")
    source = {"name": "x", "path": str(tar), "captions_from": {"path": str(captions)}}
    with pytest.raises(DataError, match=r"its urls are such as 'http://b/a.jpg', the images'.*a/a"):
        run(small_config(tmp_path, [source]))


def test_a_sample_has_the_captions_that_the_stage_will_join(tmp_path):
    members = []
    for n in range(6):
        beside = json.dumps({"url": f"http://a/{n}.jpg", "caption": "alt text"}).encode()
        members += [(f"{n}.png", image_bytes(n)), (f"{n}.json", beside)]
    tar = write(tmp_path / "a.tar", tar_bytes(members))
    lines = [f"http://a/{n}.jpg,Caption {n}." for n in range(1, 9)] + ["http://a/1.jpg,Another."]
    captions = write(tmp_path / "c.csv", "\n".join(["url,caption", *lines]))
    config = small_config(
        tmp_path, [{"name": "x", "path": str(tar), "captions_from": {"path": str(captions)}}]
    )
    (drawn,) = draw(config, 6, 0)
    found = {row["url"][-5:]: [entry["texts"] for entry in row["texts"]] for row in drawn.rows}
    assert found["0.png"] == []
    assert found["1.png"] == [["Caption 1."], ["Another."]]
    assert found["5.png"] == [["Caption 5."]]
    reasons = [row["reason"] for row in drawn.rows]
    assert sorted(filter(None, reasons)) == ["no_caption_row"]
