"""From JPEG files and captions to the published code's own scores: library, scorer and stage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from evaluate_support import start
from safetensors.torch import load_file

import caft
from caft.captions import caption_sentences
from caft.metrics import retrieval_recall
from pipelines.evaluate.adapters import open_adapter

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN, PICTURES = SHARED / "golden" / "end_to_end", SHARED / "data" / "coco_cc" / "images"
TOLERANCE = 2e-4

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="reference numbers are not here")


@pytest.fixture(scope="module")
def inputs():
    return json.loads((GOLDEN / "inputs.json").read_text())


@pytest.fixture(scope="module")
def expected():
    return load_file(GOLDEN / "scores.safetensors")


@pytest.fixture(scope="module")
def weights():
    return {k: v.float() for k, v in load_file(GOLDEN / "weights_float16.safetensors").items()}


@pytest.fixture
def released(tmp_path, weights):
    """A file as it is published, with its configuration beside it."""
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "x.pt")
    shutil.copy(GOLDEN / "config.json", tmp_path / "x.json")
    return tmp_path / "x.pt"


def assert_scores(found, expected):
    worst = (found - expected).abs().max().item()
    assert worst < TOLERANCE, f"{worst:.2e} off"


@torch.inference_mode()
def test_the_library_gives_the_published_scores(weights, inputs, expected):
    model = caft.from_reference(weights, json.loads((GOLDEN / "config.json").read_text()))
    pixels = torch.stack([model.preprocess(PICTURES / name) for name in inputs["images"]])
    images, texts = model.encode_image(pixels), model.encode_text(inputs["captions"])
    for alpha, name in ((0, "score_whole"), (1, "score_part"), (0.3, "score_blend_0_3")):
        assert_scores(model.score(images, texts, alpha=alpha), expected[name])


@torch.inference_mode()
def test_the_tiled_scorer_gives_the_published_scores(released, inputs, expected):
    adapter = open_adapter(str(released))
    rows = [{"url": n, "image": (PICTURES / n).read_bytes()} for n in inputs["images"]]
    images = adapter.encode_images(adapter.preprocess()(rows))
    captions = [caption_sentences(caption, adapter.sentences) for caption in inputs["captions"]]
    texts = adapter.encode_texts(captions)
    scorer = adapter.scorer()
    tile = scorer.tile(
        scorer.prepare_images(images), scorer.prepare_texts(texts), scorer.components
    )
    for name, score in tile.items():
        assert_scores(score, expected[f"score_{name}"])


def test_the_stage_ranks_by_the_published_scores(
    released, inputs, expected, tracking, tmp_path, ray_cluster
):
    root = tmp_path / "Urban1k"
    for folder in ("images", "caption"):
        (root / folder).mkdir(parents=True)
    for n, (image, caption) in enumerate(zip(inputs["images"], inputs["captions"], strict=True)):
        shutil.copy(PICTURES / image, root / "images" / f"{n}.jpg")
        (root / "caption" / f"{n}.txt").write_text(caption)
    settings = {
        "checkpoint": str(released),
        "output": str(tmp_path / "output"),
        "benchmarks": [{"name": "urban_1k", "set": "urban_1k", "root": str(root), "partial": True}],
        "tracking": tracking.model_dump(),
        "report": {"images": 1, "retrievals": 1},
    }
    results = json.loads((start(settings) / "metrics.json").read_text())["benchmarks"]["urban_1k"]
    for kind, name in (("whole", "score_whole"), ("blended", "score_blend_0_3")):
        for key, value in retrieval_recall(expected[name], torch.arange(6)).items():
            assert results[f"{kind}_{key}"] == pytest.approx(value), (kind, key)
