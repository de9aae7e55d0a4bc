"""The model against reference numbers: released key names, float32, dead superpixels kept.
Reads the reference folder where it stands beside the checkout, and skips where it does not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import caft
from caft.errors import CheckpointError
from caft.graph_pool import farthest_point_seeds
from caft.losses import caft_loss, select_sub_captions
from caft.reference import load_reference_weights
from caft.superpixels import nearest_live, pool_superpixels
from caft.transforms import normalise

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="reference numbers are not here")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def case():
    files = ("weights", "inputs", "outputs", "gradients")
    loaded = {name: load_file(GOLDEN / "tiny" / f"{name}.safetensors") for name in files}
    config = json.loads((GOLDEN / "tiny" / "config.json").read_text())
    model = caft.from_reference(loaded["weights"], config)
    return model, loaded


@pytest.fixture(scope="module")
def features(case):
    model, loaded = case
    inputs = loaded["inputs"]
    images = model.encode_image(inputs["images_uint8"], inputs["superpixels"])
    return images, model.encode_text(inputs["tokens"].long())


def assert_close(ours, reference):
    error = (ours - reference).abs().max() / reference.abs().max()
    assert error < TOLERANCE, f"relative error {error:.2e}"


def test_segment_tokens_and_nearest_live_are_the_reference_s(case):
    model, loaded = case
    inputs, outputs = loaded["inputs"], loaded["outputs"]
    encoder = model.image_encoder
    stem = encoder.stem(normalise(inputs["images_uint8"])).permute(0, 2, 3, 1)
    assert_close(stem[:1], outputs["stem"])
    labels = inputs["superpixels"].long()
    tokens, live = pool_superpixels(stem + encoder.positions, labels, 196)
    assert torch.equal(~live, outputs["dead"].bool())
    assert torch.equal(nearest_live(labels, live), outputs["nearest_live"])
    assert_close(tokens, outputs["segment_tokens"])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_seeds_and_assignments_are_the_reference_s(case, features, level):
    _, loaded = case
    outputs = loaded["outputs"]
    live = ~outputs["dead"].bool() if level == 1 else None
    expected = outputs[f"seed_indices{level}"]
    tokens = outputs[f"block{level}"][:, 1:]
    assert torch.equal(
        farthest_point_seeds(tokens, expected.shape[1], live, keep_dead=True), expected
    )
    soft = outputs[f"pool_logits{level}"].softmax(dim=-1)
    assert_close(features[0].assignments[level - 1], soft)


@pytest.mark.parametrize(
    ("ours", "name"),
    [("fine", "fine"), ("fine_cls", "fine_cls"), ("coarse", "coarse"), ("whole", "whole_image")],
)
def test_image_features_are_the_reference_s(case, features, ours, name):
    assert_close(getattr(features[0], ours), case[1]["outputs"][name])


def test_text_features_are_the_reference_s(case, features):
    outputs = case[1]["outputs"]
    assert_close(features[1].parts, outputs["part_text"])
    assert_close(features[1].whole, outputs["whole_text"])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"alpha": 0}, "score_whole"),
        ({"alpha": 1}, "score_part"),
        ({}, "score_blend_0_3"),
        ({"top_k": 2}, "score_blend_0_3_top2"),
    ],
)
def test_scores_are_the_reference_s(case, features, options, name):
    model, loaded = case
    ours, reference = model.score(*features, **options), loaded["outputs"][name]
    kept = reference.isfinite()
    assert torch.equal(ours.isfinite(), kept)
    assert_close(ours[kept], reference[kept])


def test_losses_and_gradients_are_the_reference_s(case):
    model, loaded = case
    inputs, outputs = loaded["inputs"], loaded["outputs"]
    images, texts = model(inputs["images_uint8"], inputs["tokens"].long(), inputs["superpixels"])
    loss = caft_loss(images, texts, model, negatives=inputs["negatives"].long())
    assert_close(loss.part_text_conditioned, outputs["loss_part_text_conditioned"])
    assert_close(loss.part_multi_positive, outputs["loss_part_multi_positive"])
    assert_close(loss.whole, outputs["loss_whole"])
    assert_close(loss.total, outputs["loss_total"])
    model.zero_grad()
    loss.total.backward()
    reference = caft.from_reference(
        loaded["weights"] | loaded["gradients"], json.loads(config_text()), True
    )
    expected = dict(reference.named_parameters())
    weights = dict(
        caft.from_reference(loaded["weights"], json.loads(config_text())).named_parameters()
    )
    compared = 0
    for name, parameter in model.named_parameters():
        if not torch.equal(expected[name], weights[name]):  # one of those with a gradient on file
            assert_close(parameter.grad, expected[name])
            compared += 1
    assert compared >= 26


def test_selected_sub_captions_are_the_reference_s(case):
    _, loaded = case
    negatives = loaded["inputs"]["negatives"].long()
    ours = select_sub_captions(torch.arange(4), 0, 4, 8, negatives)
    assert torch.equal(ours.sort(dim=1).values, loaded["outputs"]["selection"].sort(dim=1).values)


def test_every_key_of_a_released_caft_b_is_accounted_for():
    shapes = json.loads((GOLDEN / "state_dict_caft_b.json").read_text())
    released = {
        key: torch.zeros(shape, dtype=getattr(torch, dtype))
        for key, (shape, dtype) in shapes.items()
    }
    model = caft.create_model("caft_b")
    assert sum(p.numel() for p in model.parameters()) == 169_219_513
    load_reference_weights(model, released)
    del released["image_post.proj"]
    released["visual.nobody_knows"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"visual\.nobody_knows.*fine_projection"):
        load_reference_weights(model, released)


def config_text() -> str:
    return (GOLDEN / "tiny" / "config.json").read_text()
