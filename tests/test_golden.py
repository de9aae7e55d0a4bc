"""The model against reference numbers: released key names, float32, dead superpixels kept.
Two sets: a small one in tests/fixtures, and one beside the checkout, skipped where it is absent."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from plain_caft import PlainCAFT
from plain_weights import CAFT_B, random_state_dict
from safetensors.torch import load_file
from torch import Tensor

import caft
from caft.errors import CheckpointError
from caft.graph_pool import farthest_point_seeds
from caft.losses import caft_loss, select_sub_captions
from caft.reference import load_reference_weights
from caft.superpixels import nearest_live, pool_superpixels
from caft.transforms import normalise

SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden"
FIXTURE = Path(__file__).parent / "fixtures" / "golden_small"
TOLERANCE = 1e-4
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="reference numbers are not here")


@dataclass
class Case:
    config: dict
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    model: caft.CAFT

    @property
    def superpixel_count(self) -> int:
        return self.model.config.image.superpixel_count


@pytest.fixture(
    scope="module",
    params=[FIXTURE, pytest.param(SHARED / "tiny", marks=needs_shared)],
    ids=["fixture", "shared"],
)
def case(request) -> Case:
    files = ("weights", "inputs", "outputs", "gradients")
    loaded = {name: load_file(request.param / f"{name}.safetensors") for name in files}
    config = json.loads((request.param / "config.json").read_text())
    return Case(config, **loaded, model=caft.from_reference(loaded["weights"], config))


@pytest.fixture(scope="module")
def features(case):
    images = case.model.encode_image(case.inputs["images_uint8"], case.inputs["superpixels"])
    return images, case.model.encode_text(case.inputs["tokens"].long())


def assert_close(ours, reference):
    error = (ours - reference).abs().max() / reference.abs().max()
    assert error < TOLERANCE, f"relative error {error:.2e}"


def test_segment_tokens_and_nearest_live_are_the_reference_s(case):
    encoder, outputs = case.model.image_encoder, case.outputs
    stem = encoder.stem(normalise(case.inputs["images_uint8"])).permute(0, 2, 3, 1)
    assert_close(stem[:1], outputs["stem"])
    labels = case.inputs["superpixels"].long()
    tokens, live = pool_superpixels(stem + encoder.positions, labels, case.superpixel_count)
    assert torch.equal(~live, outputs["dead"].bool())
    assert torch.equal(nearest_live(labels, live), outputs["nearest_live"])
    assert_close(tokens, outputs["segment_tokens"])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_seeds_and_assignments_are_the_reference_s(case, features, level):
    live = ~case.outputs["dead"].bool() if level == 1 else None
    expected = case.outputs[f"seed_indices{level}"]
    tokens = case.outputs[f"block{level}"][:, 1:]
    ours = farthest_point_seeds(tokens, expected.shape[1], live, keep_dead=True)
    assert torch.equal(ours, expected)
    soft = case.outputs[f"pool_logits{level}"].softmax(dim=-1)
    assert_close(features[0].assignments[level - 1], soft)


@pytest.mark.parametrize(
    ("ours", "name"),
    [("fine", "fine"), ("fine_cls", "fine_cls"), ("coarse", "coarse"), ("whole", "whole_image")],
)
def test_image_features_are_the_reference_s(case, features, ours, name):
    assert_close(getattr(features[0], ours), case.outputs[name])


def test_text_features_are_the_reference_s(case, features):
    assert_close(features[1].parts, case.outputs["part_text"])
    assert_close(features[1].whole, case.outputs["whole_text"])


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
    ours, reference = case.model.score(*features, **options), case.outputs[name]
    kept = reference.isfinite()
    assert torch.equal(ours.isfinite(), kept)
    assert_close(ours[kept], reference[kept])


def test_losses_and_gradients_are_the_reference_s(case):
    model, inputs, outputs = case.model, case.inputs, case.outputs
    images, texts = model(inputs["images_uint8"], inputs["tokens"].long(), inputs["superpixels"])
    loss = caft_loss(images, texts, model, negatives=inputs["negatives"].long())
    assert_close(loss.part_text_conditioned, outputs["loss_part_text_conditioned"])
    assert_close(loss.part_multi_positive, outputs["loss_part_multi_positive"])
    assert_close(loss.whole, outputs["loss_whole"])
    assert_close(loss.total, outputs["loss_total"])
    model.zero_grad()
    loss.total.backward()
    # A model whose weights are the gradients on file, so that both go by our names.
    with_gradients = case.weights | case.gradients
    expected = dict(caft.from_reference(with_gradients, case.config).named_parameters())
    weights = dict(model.named_parameters())
    on_file = [name for name, value in expected.items() if not torch.equal(value, weights[name])]
    assert len(on_file) >= len(case.gradients)
    for name in on_file:
        assert_close(weights[name].grad, expected[name])


def test_selected_sub_captions_are_the_reference_s(case):
    batch, parts = case.outputs["part_text"].shape[:2]
    ours = select_sub_captions(
        torch.arange(batch), 0, batch, parts, case.inputs["negatives"].long()
    )
    expected = case.outputs["selection"]
    assert torch.equal(ours.sort(dim=1).values, expected.sort(dim=1).values)


def test_the_plain_path_gives_the_reference_s_numbers_too(case):
    from make_golden import run_plain

    plain = PlainCAFT(case.weights, case.config)
    ours = run_plain(plain, case.inputs)
    for name, reference in case.outputs.items():
        value = ours[name][:1] if name == "stem" else ours[name]
        if reference.is_floating_point():
            kept = reference.isfinite()
            assert_close(value[kept], reference[kept])
        else:
            assert torch.equal(value.long(), reference.long()), name
    ours["loss_total"].backward()
    for key, reference in case.gradients.items():
        assert_close(plain.parameters[key].grad, reference)


@needs_shared
def test_every_key_of_a_released_caft_b_is_known():
    shapes = json.loads((SHARED / "state_dict_caft_b.json").read_text())
    ours = {key: list(value.shape) for key, value in random_state_dict(CAFT_B, 0).items()}
    assert ours == {
        key: shape
        for key, (shape, _) in shapes.items()
        if not key.startswith("visual.superpixel_generator.")
    }


def test_every_key_of_a_released_caft_b_is_accounted_for():
    released = random_state_dict(CAFT_B, 0)
    model = caft.from_reference(released, CAFT_B)
    assert sum(p.numel() for p in model.parameters()) == 169_219_513
    del released["image_post.proj"], released["visual_proj.attn.in_proj_bias"]
    released["visual.nobody_knows"] = torch.zeros(1)
    released["ln_final.weight"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as caught:
        load_reference_weights(model, released)
    assert sorted(str(caught.value).removeprefix("released weights do not fit: ").split("; ")) == [
        "'ln_final.weight' is (7,), not (512,)",
        "missing 'image_post.proj'",
        "missing 'visual_proj.attn.in_proj_bias'",
        "surplus 'visual.nobody_knows'",
    ]


@pytest.mark.skipif(not (SHARED / "end_to_end").exists(), reason="reference scores are not here")
def test_files_and_captions_get_the_published_evaluation_s_scores():
    """From JPEG files and texts alone: picture, superpixels, sentences, chunks and both scores."""
    folder = SHARED / "end_to_end"
    weights = load_file(folder / "weights_float16.safetensors")
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    model = caft.from_reference(weights, json.loads((folder / "config.json").read_text()))
    inputs = json.loads((folder / "inputs.json").read_text())
    photographs = SHARED.parent / "data" / "coco_cc"
    paths = [next(photographs.rglob(name)) for name in inputs["images"]]
    with torch.inference_mode():
        images = model.encode_image(torch.stack([model.preprocess(path) for path in paths]))
        texts = model.encode_text(inputs["captions"])
    expected = load_file(folder / "scores.safetensors")
    for alpha, name in ((0.0, "score_whole"), (1.0, "score_part"), (0.3, "score_blend_0_3")):
        found = model.score(images, texts, alpha=alpha)
        torch.testing.assert_close(found, expected[name], rtol=0, atol=2e-4)
