"""Many sources in one set: what is taken, what goes for what, and sets that are filtered again."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripted_server import body, serving
from stage_support import (
    caption,
    keys_of,
    picture,
    read,
    rejects_of,
    small_config,
    write_list,
)
from tests_support import tiny_config

import caft
from caft.checkpoint import save_weights, write_manifest
from caft.config import ImageConfig
from caft.errors import CheckpointError, ConfigError, DataError
from caft.superpixels import stored_labels
from pipelines.data.config import DataConfig, SimilarityFilter
from pipelines.data.dataset import open_dataset
from pipelines.data.dedup.similarity import SimilarityScorer
from pipelines.data.retry import retry
from pipelines.data.stage import run
from pipelines.data.verify import verify

COUNT = 30


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        server.script |= {f"/{n}.jpg": body(picture(n, 64 + n)) for n in range(COUNT)}
        yield server


@pytest.fixture
def sources(server, tmp_path):
    """Lists: sources("name", rows, ...) of (number of a picture, caption)."""

    def make(name, rows, **fields):
        listed = [(server.url(f"/{n}.jpg"), text) for n, text in rows]
        return write_list(tmp_path / f"{name}.csv", listed) | fields

    return make


def rows_of(output: str) -> dict[str, dict]:
    tables = [read(f"{output}/{entry.name}") for entry in open_dataset(output).files]
    return {row["url"]: row for table in tables for row in table.to_pylist()}


def counts_of(output: str) -> dict:
    return open_dataset(output).manifest["counts"]


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def near(config: DataConfig, distance: int | None) -> DataConfig:
    changed = config.duplicates.model_copy(update={"near_distance": distance})
    return config.model_copy(update={"duplicates": changed})


def test_of_equal_urls_the_longest_captions_stay_whatever_the_source(
    ray_cluster, sources, server, tmp_path
):
    short, long = "One dog. It runs.", "One dog. It runs over a meadow. It barks."
    one = sources("one", [(n, short if n % 2 else long) for n in range(COUNT)])
    other = sources("other", [(n, long if n % 2 else short) for n in range(COUNT)])
    server.requests.clear()
    config = small_config(tmp_path, [one, other])
    run(config)
    assert len(server.requests) == COUNT  # what will go is not even asked for
    assert counts_of(config.output)["rejected"] == {"duplicate_url": COUNT}
    kept = rows_of(config.output)
    assert len(kept) == COUNT
    assert all(len(row["captions"][0]["sentences"]) == 3 for row in kept.values())
    shares = open_dataset(config.output).manifest["sources"]
    assert shares["one"]["kept"] == shares["other"]["kept"] == COUNT // 2
    assert verify(config.output) == []


def test_equal_urls_of_one_source_are_one_image_with_all_captions(ray_cluster, server, tmp_path):
    listed = [(server.url(f"/{n % 4}.jpg"), f"Caption {n} of it. It is one.") for n in range(20)]
    listed += [listed[0], (server.url("/0.jpg"), "nan"), (server.url("/0.jpg"), "caf\ufffd it is.")]
    one = write_list(tmp_path / "one.csv", listed)
    server.requests.clear()
    config = small_config(tmp_path, [one], chunk_rows=3)  # rows of one image in several chunks
    run(config)
    assert len(server.requests) == 4
    kept = rows_of(config.output)
    for n in range(4):
        captions = kept[server.url(f"/{n}.jpg")]["captions"]
        assert [c["sentences"][0] for c in captions] == [
            f"Caption {m} of it" for m in range(n, 20, 4)
        ]
    counts = counts_of(config.output)
    assert counts["input_rows"] == 23
    assert counts["rejected"] == {"bad_text": 1, "merged_captions": 17, "no_caption": 1}
    texts = open_dataset(config.output).manifest["sources"][one["name"]]["texts"]
    assert texts["notes"] == {"damaged": 1}
    assert verify(config.output) == []


def test_captions_that_were_merged_are_there_for_a_retry(ray_cluster, server, tmp_path):
    listed = [(server.url(f"/{n}.jpg"), f"Caption {n} of it.") for n in range(4)]
    listed += [(server.url("/later.jpg"), f"Text {n} of it.") for n in range(5)]
    config = small_config(tmp_path, [write_list(tmp_path / "one.csv", listed)], chunk_rows=3)
    run(config)
    assert counts_of(config.output)["rejected"] == {"http_4xx": 1, "merged_captions": 4}
    server.script["/later.jpg"] = body(picture(55, 99))
    retry(config.output, ["http_4xx"])
    row = rows_of(config.output)[server.url("/later.jpg")]
    assert [c["sentences"] for c in row["captions"]] == [[f"Text {n} of it"] for n in range(5)]
    assert counts_of(config.output)["rejected"] == {"merged_captions": 4}
    assert counts_of(config.output)["input_rows"] == 9
    assert verify(config.output) == []


def test_what_another_version_began_is_refused_by_the_behaviour(ray_cluster, sources, tmp_path):
    config = small_config(tmp_path, [sources("list", [(n, caption(n)) for n in range(4)])])
    run(config)
    (tmp_path / "data/manifest.json").unlink()
    (tmp_path / "data/identity.json").unlink()  # which earlier versions did not write
    with pytest.raises(ConfigError, match=r"of another version: captions \(what the data"):
        run(config)


def test_equal_bytes_and_near_images_name_what_they_duplicate(ray_cluster, server, tmp_path):
    base = picture(100, 200)
    server.script |= {
        "/same-a.jpg": body(base),
        "/same-b.jpg": body(base),
        "/again.jpg": body(picture(100, 200, quality=50)),
        "/smaller.jpg": body(picture(100, 150)),
        "/other.jpg": body(picture(101, 200)),
    }
    texts = {
        "/same-a.jpg": "A dog. It is red.",
        "/same-b.jpg": "A dog. It is very red indeed.",
        "/again.jpg": "A dog. It is very red indeed. It runs. It barks. It rests.",
        "/smaller.jpg": "A dog.",
        "/other.jpg": "A cat.",
    }
    listed = [(server.url(path), text) for path, text in texts.items()]
    config = near(small_config(tmp_path, [write_list(tmp_path / "list.csv", listed)]), 2)
    run(config)
    kept = rows_of(config.output)
    assert set(kept) == {server.url("/again.jpg"), server.url("/other.jpg")}
    key = kept[server.url("/again.jpg")]["key"]
    rejected = {row["url"]: (row["reason"], row["detail"]) for row in rejects_of(config.output)}
    assert rejected == {
        server.url("/same-a.jpg"): ("duplicate_image", f"duplicates key {key}"),
        server.url("/same-b.jpg"): ("near_duplicate", f"duplicates key {key}"),
        server.url("/smaller.jpg"): ("near_duplicate", f"duplicates key {key}"),
    }


def test_a_weight_takes_always_the_same_rows(ray_cluster, sources, tmp_path):
    kept = []
    for name, order in (("first", range(COUNT)), ("second", reversed(range(COUNT)))):
        folder = tmp_path / name
        folder.mkdir()
        source = sources(name, [(n, caption(n)) for n in order], weight=0.5)
        config = small_config(folder, [source])
        run(config)
        counts = counts_of(config.output)
        assert counts["kept"] + counts["rejected"]["not_sampled"] == COUNT
        assert open_dataset(config.output).manifest["sources"][name]["weight"] == 0.5
        kept.append(keys_of(config.output))
    assert kept[0] == kept[1]
    assert 5 < len(kept[0]) < 25


def test_evaluation_images_go_plain_and_mirrored(ray_cluster, server, sources, tmp_path):
    for number in (3, 4):
        image = Image.open(io.BytesIO(picture(number, 64 + number)))
        if number == 4:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        stream = io.BytesIO()
        image.resize((120, 120)).save(stream, "JPEG", quality=80)
        write(tmp_path / f"evaluation/{number}.jpg", stream.getvalue())
    sets = [{"name": "held_out", "path": str(tmp_path / "evaluation")}]
    config = small_config(
        tmp_path,
        [sources("list", [(n, caption(n)) for n in range(10)])],
        decontamination={"sets": sets},
    )
    run(config)
    rejected = {row["url"]: row for row in rejects_of(config.output)}
    assert set(rejected) == {server.url("/3.jpg"), server.url("/4.jpg")}
    assert {row["reason"] for row in rejected.values()} == {"evaluation_image"}
    assert rejected[server.url("/4.jpg")]["detail"].startswith("held_out/4.jpg (")


def test_superpixels_are_stored_and_read_by_the_model(ray_cluster, sources, tmp_path):
    superpixels = {"segmenter": {"method": "seeds"}, "image_size_px": 64, "map_size_px": 32}
    superpixels["segmenter"]["cell_px"] = 8
    config = small_config(
        tmp_path, [sources("list", [(n, caption(n)) for n in range(12)])], superpixels=superpixels
    )
    run(config)
    image = tiny_config().image.model_copy(
        update={"image_size_px": 64, "superpixels": config.superpixels.segmenter}
    )
    assert isinstance(image, ImageConfig)
    for row in rows_of(config.output).values():
        labels = stored_labels(row["superpixels"], image)
        assert labels.shape == (32, 32)
        assert 0 <= labels.min() <= labels.max() < image.superpixel_count
        assert len(np.unique(labels)) > 16


@pytest.mark.slow
def test_pairs_that_disagree_go_by_a_checkpoint(ray_cluster, sources, tmp_path):
    torch.manual_seed(0)
    save_weights(caft.create_model(tiny_config()), tmp_path / "checkpoint")
    write_manifest(tmp_path / "checkpoint", {})
    checkpoint = str(tmp_path / "checkpoint")
    listed = [sources("list", [(n, caption(n)) for n in range(COUNT)])]

    def config(name: str, min_cosine: float) -> DataConfig:
        (tmp_path / name).mkdir()
        similarity = {"checkpoint": checkpoint, "min_cosine": min_cosine, "batch_size": 7}
        filters = {"min_contrast": None, "similarity": similarity}
        return small_config(tmp_path / name, listed, filters=filters)

    everything = config("everything", -1.0)
    run(everything)
    rows = list(rows_of(everything.output).values())
    assert len(rows) == COUNT
    scorer = SimilarityScorer(SimilarityFilter(checkpoint=checkpoint, min_cosine=0))
    cosines = {row["key"]: cosine for row, cosine in zip(rows, scorer(rows), strict=True)}
    middle = float(np.median(list(cosines.values())))
    half = config("half", middle)
    run(half)
    assert keys_of(half.output) == sorted(key for key in cosines if cosines[key] >= middle)
    rejected = rejects_of(half.output)
    assert len(rejected) == COUNT // 2
    assert all(row["reason"] == "low_similarity" for row in rejected)
    assert all(row["detail"].startswith("cosine ") for row in rejected)
    with pytest.raises(DataError, match=f"low_similarity {COUNT}"):
        run(config("nothing", 1.0))
    checkpoint = str(tmp_path / "nowhere")
    missing = config("none", 0.0)
    with pytest.raises(ConfigError, match=r"similarity\.checkpoint: .*nowhere: no such file"):
        run(missing)
    Path(checkpoint).mkdir()  # seen too late: the pictures are fetched, and kept for next time
    with pytest.raises(CheckpointError, match="nowhere"):
        run(missing)


def test_a_set_is_filtered_again_without_downloading(ray_cluster, server, sources, tmp_path):
    config = small_config(tmp_path, [sources("list", [(n, caption(n)) for n in range(COUNT)])])
    run(config)
    first = rows_of(config.output)
    server.requests.clear()
    folder = tmp_path / "again"
    folder.mkdir()
    source = {"name": "again", "path": config.output, "weight": 0.8}
    filters = {"min_contrast": None, "min_side_px": 80}
    again = small_config(folder, [source], filters=filters, chunk_rows=7)
    run(again)
    assert server.requests == []
    second = rows_of(again.output)
    counts = counts_of(again.output)
    assert counts["input_rows"] == COUNT
    assert set(counts["rejected"]) == {"too_small", "not_sampled"}
    assert counts["rejected"]["not_sampled"] < COUNT // 2
    assert second == {url: first[url] for url in second}
    assert min(row["width"] for row in second.values()) >= 80
    assert verify(again.output) == []


def test_tars_folders_and_lists_together(ray_cluster, server, sources, tmp_path):
    for n in range(5):
        write(tmp_path / f"members/{n}.jpg", picture(n, 64 + n))
        write(tmp_path / f"members/{n}.txt", f"From a tar, number {n}. It is one.")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/a.tar", "w") as tar:
        for path in sorted((tmp_path / "members").iterdir()):
            tar.add(path, path.name)
    for n in range(5, 10):
        write(tmp_path / f"folder/{n}.jpg", picture(n, 64 + n))
        write(
            tmp_path / f"folder/{n}.json",
            json.dumps({"caption": f"In a folder. {caption(4)} Number {n}."}),
        )
    write(tmp_path / "folder/bad.jpg", b"no image")
    write(tmp_path / "folder/bad.txt", "No image.")
    config = small_config(
        tmp_path,
        [
            {"name": "tars", "path": str(tmp_path / "tars")},
            {"name": "folder", "path": str(tmp_path / "folder"), "split": "other"},
            sources("list", [(n, caption(n)) for n in range(12)]),
        ],
    )
    run(config)
    manifest = open_dataset(config.output).manifest
    # The list has the same bytes as the tar and the folder; the longer captions are kept.
    assert manifest["counts"]["input_rows"] == 5 + 6 + 12
    assert manifest["counts"]["rejected"] == {"duplicate_image": 10, "not_an_image": 1}
    assert manifest["counts"]["kept"] == 12
    assert {row["split"] for row in rows_of(config.output).values()} == {"train", "other"}
    details = [row["detail"] for row in rejects_of(config.output) if "duplicate" in row["reason"]]
    keys = set(keys_of(config.output))
    assert all(detail.removeprefix("duplicates key ") in keys for detail in details)
    assert verify(config.output) == []


def test_another_configuration_is_refused_and_told_the_way(ray_cluster, sources, tmp_path):
    config = small_config(tmp_path, [sources("list", [(n, caption(n)) for n in range(4)])])
    run(config)
    other = config.model_copy(update={"chunk_rows": 3})
    with pytest.raises(ConfigError, match=r"chunk_rows: \S+data holds a dataset made with 1"):
        run(other)
    (tmp_path / "data/manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"chunk_rows: .* holds an unfinished dataset made with"):
        run(other)
    run(config.model_copy(update={"concurrency": 1, "stall_timeout_s": 9.0}))  # speed alone
    sources("list", [(n, caption(n)) for n in range(5)])
    with pytest.raises(ConfigError, match=r"sources\.list\.0: .*list\.csv"):
        run(config)


def test_sources_of_one_name_are_refused(sources, tmp_path):
    source = sources("list", [(0, "A dog.")])
    with pytest.raises(ValueError, match="two are named 'list'"):
        small_config(tmp_path, [source, source])
