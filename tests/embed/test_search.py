"""Search: the evaluator's ranks, itself first, pages with heat maps, one line for bad input."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from embed_support import config_of, write_checkpoint
from tests_support import tiny_config

from caft.config import TextConfig
from caft.retrieval import ScoreKind, rank_all
from pipelines.data.dataset import open_dataset
from pipelines.demo.scenes import SceneConfig, render_scene
from pipelines.embed.embedding import open_embedding
from pipelines.embed.stage import run
from pipelines.evaluate.adapters import open_adapter
from pipelines.search.__main__ import main
from pipelines.search.model import make_query
from pipelines.search.pictures import read_images
from pipelines.search.rank import rank

CAPTION = "A red circle is in the upper left. A large blue square lies below it."
CAPTIONS = [render_scene(number, SceneConfig()).caption for number in range(40)]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracking")
    return {"uri": f"sqlite:///{folder / 'mlflow.db'}"}


@pytest.fixture(scope="module")
def make(ray_cluster, scenes, checkpoint, tracked, tmp_path_factory):
    """A function that embeds the scenes."""

    def make(**changes):
        output = str(tmp_path_factory.mktemp("embedded") / "embedding")
        settings = {
            "source": {"path": str(scenes)},
            "checkpoint": str(checkpoint),
            "output": output,
            "tracking": tracked,
        }
        run(config_of(settings, **changes))
        return output

    return make


@pytest.fixture(scope="module")
def embedded(make):
    return make(fine=True)


@pytest.fixture(scope="module")
def embedded_whole(make):
    return make()


@pytest.fixture(scope="module")
def embedded_without_parts(make, checkpoint_without_parts):
    return make(checkpoint=str(checkpoint_without_parts))


def test_ranks_are_those_of_the_evaluator_for_the_same_features(embedded, checkpoint):
    embedding, adapter = open_embedding(embedded), open_adapter(str(checkpoint))
    stored = embedding.take(range(40), ["fine"])
    images = {
        "whole": torch.from_numpy(embedding.whole.copy()),
        "fine": torch.from_numpy(np.stack([row["fine"] for row in stored])),
    }
    queries = [make_query(adapter, caption, None) for caption in CAPTIONS]
    texts = {name: torch.cat([query.texts[name] for query in queries]) for name in queries[0].texts}
    kinds = [ScoreKind("whole", best=40), ScoreKind("blended", 0.3, best=40)]
    theirs = rank_all(adapter.scorer(), images, texts, range(40), kinds)
    for number, query in enumerate(queries):
        by_whole = rank(embedding, adapter, query, 40, 0, 0.3)
        blended = rank(embedding, adapter, query, 40, 40, 0.3)
        require_same_order([hit.row for hit in by_whole], theirs["whole"], number, 1e-5)
        require_same_order([hit.row for hit in blended], theirs["blended"], number, 1e-4)
        scores = torch.tensor([hit.score for hit in blended])
        assert torch.allclose(scores, theirs["blended"].text_top_scores[number], atol=1e-4)


def require_same_order(rows, ranking, number, tolerance):
    """The evaluator's order, but where its scores differ by rounding alone."""
    top, scores = ranking.text_top[number].tolist(), ranking.text_top_scores[number].tolist()
    assert sorted(rows) == sorted(top)
    of_row = dict(zip(top, scores, strict=True))
    for row, score in zip(rows, scores, strict=True):
        assert abs(of_row[row] - score) < tolerance, (row, score)


def test_images_encoded_again_rank_as_stored_fine_embeddings(embedded, embedded_whole, checkpoint):
    adapter = open_adapter(str(checkpoint))
    query = make_query(adapter, CAPTION, None)
    kept = rank(open_embedding(embedded), adapter, query, 40, 40, 1.0)
    again = rank(open_embedding(embedded_whole), adapter, query, 40, 40, 1.0)
    scores = {hit.row: hit.score for hit in kept}
    for hit, other in zip(again, kept, strict=True):
        assert abs(hit.score - scores[hit.row]) < 1e-2
        assert abs(hit.score - other.score) < 1e-2


def test_only_the_best_by_the_whole_are_ranked_again(embedded, checkpoint):
    embedding, adapter = open_embedding(embedded), open_adapter(str(checkpoint))
    query = make_query(adapter, CAPTION, None)
    by_whole = [hit.row for hit in rank(embedding, adapter, query, 40, 0, 0.3)]
    some = rank(embedding, adapter, query, 40, 7, 0.3)
    assert {hit.row for hit in some[:7]} == set(by_whole[:7])
    assert [hit.row for hit in some[7:]] == by_whole[7:]
    assert [hit.score is None for hit in some] == [False] * 7 + [True] * 33


def test_the_command_prints_and_draws(embedded, scenes, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main([embedded, CAPTION, "--count", "5", "--page", str(page)]) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if ".png" in line]) == 5
    assert "40 images in" in out
    text = page.read_text()
    assert text.count('alt="found image"') == 5
    assert text.count('alt="heat map"') == 4 * 2  # of four images, a sentence each
    assert "<script" not in text


def test_an_image_finds_itself(embedded, scenes, tmp_path, capsys):
    page = str(tmp_path / "page.html")
    assert main([embedded, "--image", str(scenes / "013.png"), "--page", page]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("/013.png")
    assert "cosine 1.000" in first
    hostile = f"{CAPTION} <script>alert(1)</script>"
    both = [embedded, hostile, "--image", str(scenes / "013.png"), "--page", page]
    assert main(both) == 0
    text = Path(page).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_moved_source_costs_its_pictures_alone(make, scenes, tmp_path, capsys):
    moved = tmp_path / "scenes"
    shutil.copytree(scenes, moved)
    with_images = make(source={"path": str(moved)}, images=True)
    without = make(source={"path": str(moved)})
    shutil.rmtree(moved)
    rows = read_images(open_embedding(with_images), [3, 17])
    assert all(row["image"] for row in rows)
    rows = read_images(open_embedding(without), [3, 17])
    assert [row["image"] for row in rows] == [None, None]
    assert "missing_file" in rows[0]["detail"]
    page = tmp_path / "page.html"
    assert main([without, CAPTION, "--page", str(page)]) == 0
    assert "no picture" in page.read_text()


def test_a_dataset_gives_back_its_images(make, dataset_folder, tmp_path, capsys):
    embedding = open_embedding(make(source={"path": dataset_folder}))
    assert embedding.rows == open_dataset(dataset_folder).rows
    rows = read_images(embedding, [0, embedding.rows - 1, 5])
    assert all(row["image"] for row in rows)
    assert len({row["key"] for row in rows}) == 3


def test_an_index_finds_the_same_best_images(embedded, checkpoint, tmp_path, capsys):
    pytest.importorskip("faiss")
    embedding, adapter = open_embedding(embedded), open_adapter(str(checkpoint))
    query = make_query(adapter, CAPTION, None)
    exact = rank(embedding, adapter, query, 5, 0, 0.3)
    assert rank(embedding, adapter, query, 5, 0, 0.3, approximate=True) == exact
    words = [embedded, CAPTION, "--approximate", "--page", str(tmp_path / "page.html")]
    assert main(words) == 0
    assert "makes an index" not in capsys.readouterr().out.partition("score")[2]


def test_an_index_without_faiss(embedded, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main([embedded, CAPTION, "--approximate"]) == 2
    assert "--approximate: faiss-cpu is not installed; pip install" in capsys.readouterr().err


def test_a_model_without_parts_ranks_by_the_whole(embedded_without_parts, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main([embedded_without_parts, CAPTION, "--page", str(page)]) == 0
    assert "score" not in capsys.readouterr().out
    assert "heat map" not in page.read_text()


@pytest.mark.parametrize("option", ["--rerank", "--heat-maps"])
def test_parts_that_are_not_there(embedded_without_parts, option, capsys):
    assert main([embedded_without_parts, CAPTION, option, "3"]) == 2
    assert f"{option}: tiny has no parts" in capsys.readouterr().err


def test_a_folder_that_is_no_embedding(scenes, tmp_path, capsys):
    assert main([str(scenes), CAPTION]) == 2
    assert "no embedding.json, so this is no embedding" in capsys.readouterr().err
    assert main([str(tmp_path / "absent"), CAPTION]) == 2
    assert "no embedding.json" in capsys.readouterr().err


def test_an_embedding_that_lost_a_part(embedded, tmp_path, capsys):
    shutil.copytree(embedded, tmp_path / "copy")
    part = tmp_path / "copy" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-10])
    assert main([str(tmp_path / "copy"), CAPTION]) == 2
    assert "part-00000.parquet: has" in capsys.readouterr().err
    part.unlink()
    assert main([str(tmp_path / "copy"), CAPTION]) == 2
    assert "part-00000.parquet: is missing" in capsys.readouterr().err


def test_another_model_than_the_embeddings(embedded, tmp_path, capsys):
    same_kind = write_checkpoint(tmp_path / "other", tiny_config(), seed=1)
    assert main([embedded, CAPTION, "--checkpoint", str(same_kind)]) == 2
    assert "is not the model that made" in (error := capsys.readouterr().err)
    assert "other weights" in error
    text = tiny_config().text.model_dump() | {"tokenizer": "demo", "vocab_size": 1536}
    other = write_checkpoint(tmp_path / "demo", tiny_config(text=TextConfig(**text)))
    assert main([embedded, CAPTION, "--checkpoint", str(other)]) == 2
    assert "text.tokenizer 'demo' where the embedding's model has 'clip'" in capsys.readouterr().err
    assert main([embedded, CAPTION, "--checkpoint", str(tmp_path / "absent")]) == 2


@pytest.mark.parametrize("caption", ["", "  ", "... ,"])
def test_a_caption_without_a_word(embedded, caption, capsys):
    assert main([embedded, caption]) == 2
    assert "has no word in it" in capsys.readouterr().err


def test_no_query_and_an_image_that_cannot_be_read(embedded, scenes, capsys):
    assert main([embedded]) == 2
    assert "nothing to look for" in capsys.readouterr().err
    assert main([embedded, "--image", str(scenes / "030-page.jpg")]) == 2
    assert "030-page.jpg: cannot be read as an image" in capsys.readouterr().err
    assert main([embedded, "--image", str(scenes / "absent.jpg")]) == 2
    assert "absent.jpg: No such file" in capsys.readouterr().err


def test_a_refused_folder_is_one_line_on_stderr(scenes):
    program = [sys.executable, "-m", "pipelines.search", str(scenes), CAPTION]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
