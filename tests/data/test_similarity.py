"""Scores of a tiny checkpoint against the model asked directly."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests_support import random_images, tiny_config, tiny_controls

import caft
from caft.checkpoint import save_weights, write_manifest
from caft.errors import CheckpointError, ConfigError, DataError
from pipelines.data.config import SimilarityFilter
from pipelines.data.dedup.similarity import SimilarityScorer, dissimilar

SENTENCES = ["A red dog", "A cat on a mat", "Two birds", "A tree", "The sky is blue"]


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint", tiny_config())


def write_checkpoint(folder, config) -> str:
    torch.manual_seed(0)
    save_weights(caft.create_model(config), folder)
    write_manifest(folder, {})
    return str(folder)


def make_rows(count) -> list[dict]:
    """Images as PNG, so that what the model is asked directly has the very same pixels."""
    rows = []
    for n, image in enumerate(random_images(count)):
        pixels = cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR)
        short = {"source": "raw", "kind": "raw", "sentences": ["A pet"]}
        long = {"source": "b", "kind": "long", "sentences": SENTENCES[n % 3 :]}
        data = cv2.imencode(".png", pixels)[1].tobytes()
        rows.append({"url": f"http://a/{n}.png", "image": data, "captions": [short, long]})
    return rows


def test_cosines_of_whole_image_and_longest_caption_whatever_the_batches(checkpoint):
    rows = make_rows(7)
    scorer = SimilarityScorer(SimilarityFilter(checkpoint=checkpoint, min_cosine=0, batch_size=3))
    cosines = scorer(rows)
    model = caft.load_model(checkpoint)
    chunks = [c for n in range(7) for c in caft.captions.even_chunks(SENTENCES[n % 3 :], 4)]
    with torch.inference_mode():
        images = model.encode_image(random_images(7)).whole
        texts = model.encode_text(model.tokenize(chunks).view(7, 4, -1)).whole
    expected = (F.normalize(images, dim=-1) * F.normalize(texts, dim=-1)).sum(dim=-1)
    np.testing.assert_allclose(cosines, expected, atol=1e-5)
    assert scorer([]).shape == (0,)


def test_only_less_than_the_least_cosine_is_refused():
    config = SimilarityFilter(checkpoint="any", min_cosine=0.25)
    assert dissimilar(0.25, config) is None
    assert dissimilar(0.2, config) == "cosine 0.2000"


def test_an_image_that_cannot_be_decoded_is_named(checkpoint):
    scorer = SimilarityScorer(SimilarityFilter(checkpoint=checkpoint, min_cosine=0))
    rows = make_rows(2)
    rows[1]["image"] = b"no image"
    with pytest.raises(DataError, match=r"^http://a/1\.png: image of 8 bytes"):
        scorer(rows)


def test_checkpoints_that_cannot_score_are_refused(tmp_path):
    with pytest.raises(CheckpointError):
        SimilarityScorer(SimilarityFilter(checkpoint=str(tmp_path / "none"), min_cosine=0))
    parts_only = write_checkpoint(tmp_path / "flair", tiny_controls()["flair"])
    with pytest.raises(ConfigError, match="without a whole loss"):
        SimilarityScorer(SimilarityFilter(checkpoint=parts_only, min_cosine=0))


def test_a_diverged_checkpoint_is_named(tmp_path):
    model = caft.create_model(tiny_config())
    with torch.no_grad():
        model.whole_projection.fill_(float("nan"))
    save_weights(model, tmp_path / "bad")
    write_manifest(tmp_path / "bad", {})
    scorer = SimilarityScorer(SimilarityFilter(checkpoint=str(tmp_path / "bad"), min_cosine=0))
    with pytest.raises(CheckpointError, match=r"not numbers, first for http://a/0\.png"):
        scorer(make_rows(2))
