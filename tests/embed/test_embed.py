"""The embed stage: every row counted, the model's own features, killed and resumed, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from embed_support import config_of, write_checkpoint
from mlflow import MlflowClient
from tests_support import tiny_config

import caft
from caft.errors import CAFTError, ConfigError
from pipelines.embed.config import EmbedConfig
from pipelines.embed.embedding import open_embedding
from pipelines.embed.pieces import NAME, Piece
from pipelines.embed.stage import run
from pipelines.recipes import load_recipe
from pipelines.search.pictures import read_images
from pipelines.submit.chain import Step, connect_steps


def table_of(folder):
    return pq.read_table(sorted(folder.glob("part-*.parquet")))


def test_a_folder_without_captions_is_embedded_and_counted(
    ray_cluster, settings, scenes, checkpoint, tmp_path, tracking
):
    run(config_of(settings, fine=True))
    embedding = open_embedding(settings["output"])
    assert embedding.manifest["counts"] == {
        "input_rows": 42,
        "kept": 40,
        "rejected": {"not_an_image": 1, "truncated_image": 1},
    }
    output = tmp_path / "embedding"
    table = table_of(output)
    assert table["url"].to_pylist() == [str(scenes / f"{n:03d}.png") for n in range(40)]
    assert len(set(table["key"].to_pylist())) == 40
    model = caft.load_model(checkpoint)
    with torch.inference_mode():
        features = model.encode_image([str(scenes / "007.png")])
    row = embedding.take([7], ["fine", "url"])[0]
    assert np.allclose(row["fine"], features.fine[0].numpy(), atol=2e-3)
    whole = F.normalize(features.whole[0], dim=-1).numpy()
    assert np.allclose(embedding.whole[7], whole, atol=1e-3)
    assert embedding.whole.dtype == np.float16
    rejects = pq.read_table(output / "rejects").to_pylist()
    assert sorted(row["url"].rpartition("/")[2] for row in rejects) == [
        "020-cut.png",
        "030-page.jpg",
    ]
    assert not (output / "work").exists()
    client = MlflowClient(tracking.uri)
    logged = client.get_run(embedding.manifest["mlflow_run_id"])
    assert logged.data.metrics["kept"] == 40
    assert logged.data.metrics["rejected/not_an_image"] == 1
    assert logged.data.tags["stage"] == "embed"


def write_list(path, scenes, count=40):
    rows = [f"{scenes}/{number:03d}.png" for number in range(count)]
    path.write_text("\n".join(["image_path", *rows]) + "\n")


def test_a_killed_run_continues_without_making_its_pieces_again(settings, scenes, tmp_path):
    moved = tmp_path / "scenes"
    shutil.copytree(scenes, moved)
    write_list(tmp_path / "list.csv", moved)
    words = [
        *("source.path=" + str(tmp_path / "list.csv"), f"checkpoint={settings['checkpoint']}"),
        *(f"output={settings['output']}", "chunk_rows=4", "fine=true"),
        f"tracking.uri={settings['tracking']['uri']}",
    ]
    program = [sys.executable, "-m", "pipelines.embed", *words]
    work = tmp_path / "embedding" / "work"
    with subprocess.Popen(program, start_new_session=True) as first:
        while not list(work.glob("piece-*")):
            assert first.poll() is None
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
    pieces = [Piece(*map(int, NAME.fullmatch(file.name).groups())) for file in work.glob("piece-*")]
    done = sum(piece.rows for piece in pieces)
    assert 0 < done < 40
    for piece in pieces:  # what is embedded is not asked for again: it is gone
        for number in range(4 * piece.chunk, 4 * piece.chunk + piece.rows):
            (moved / f"{number:03d}.png").unlink()
    ended = subprocess.run(program, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    embedding = open_embedding(settings["output"])
    assert embedding.manifest["counts"] == {"input_rows": 40, "kept": 40, "rejected": {}}
    urls = [row["url"] for row in embedding.take(range(40), ["url"])]
    assert urls == [f"{moved}/{number:03d}.png" for number in range(40)]
    again = subprocess.run(program, capture_output=True, text=True, timeout=250)
    assert "finished before" in again.stdout


def test_every_row_of_tars_and_parquet_is_counted_and_read_again(
    ray_cluster, settings, scenes, tmp_path
):
    files = sorted(scenes.glob("0*.png"))[:9]
    tars = tmp_path / "tars"
    tars.mkdir()
    for number in range(3):
        with tarfile.open(tars / f"{number}.tar", "w") as tar:
            for file in files[3 * number : 3 * number + 3]:
                tar.add(file, file.name)
    images = [file.read_bytes() for file in files]
    pq.write_table(pa.table({"image": [*images, b"no image"]}), tmp_path / "images.parquet")
    for path, count in ((str(tars), 9), (str(tmp_path / "images.parquet"), 10)):
        output = str(tmp_path / f"out{count}")
        run(config_of(settings, source={"path": path}, output=output))
        embedding = open_embedding(output)
        assert embedding.manifest["counts"]["input_rows"] == count
        assert embedding.rows == 9
        assert [row["image"] for row in read_images(embedding, range(9))] == images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": {"path": "/nowhere/images"}}, "/nowhere/images: no such file"),
        ({"checkpoint": "/nowhere/final"}, "/nowhere/final"),
        ({"source": {"path": ""}}, "source.path: is empty"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anything_starts(settings, changes, message):
    with pytest.raises(CAFTError, match=message):
        run(config_of(settings, **changes))


def test_fine_embeddings_of_a_model_without_parts(settings, checkpoint_without_parts):
    with pytest.raises(ConfigError, match=r"fine: .* has no parts"):
        run(config_of(settings, checkpoint=str(checkpoint_without_parts), fine=True))


def test_an_output_of_another_model_or_source_is_refused(settings, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.embed.stage._make", lambda *_: None)  # the claim alone
    run(config_of(settings))
    other = write_checkpoint(tmp_path / "other", tiny_config(), seed=1)
    with pytest.raises(ConfigError, match=r"checkpoint: .* holds an unfinished embedding"):
        run(config_of(settings, checkpoint=str(other)))
    with pytest.raises(ConfigError, match=r"fine: .* made with False, here it is True"):
        run(config_of(settings, fine=True))
    identity = tmp_path / "embedding" / "identity.json"
    then = json.loads(identity.read_text())
    identity.write_text(json.dumps(then | {"behaviours": {"pictures": 1}}))
    with pytest.raises(ConfigError, match=r"of another version: pictures"):
        run(config_of(settings))
    identity.write_text(json.dumps(then))
    moved = tmp_path / "moved"
    shutil.copytree(settings["checkpoint"], moved)
    run(config_of(settings, checkpoint=str(moved)))  # the same model elsewhere is the same


def test_the_first_word_is_the_source_or_a_recipe():
    words = ["checkpoint=/c", "output=/o"]
    config = load_recipe(EmbedConfig, "s3://bucket/a b/tars", words)
    assert config.source.path == "s3://bucket/a b/tars"
    assert load_recipe(EmbedConfig, "images", words).source.path == "runs/demo/data"
    (step,) = connect_steps([Step("embed", "/data/set", tuple(words))])
    assert step.load().source.path == "/data/set"
    data = Step("data", "demo", ("output=/made",))
    train = Step("train", "demo", ("output=/trained",))
    *_, last = connect_steps([data, train, Step("embed", "images", ("output=/o",))])
    assert last.load().source.path == "/made"
    assert last.load().checkpoint == "/trained/final"
