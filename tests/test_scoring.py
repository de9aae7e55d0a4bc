"""Tiled scores are the plain ones of `model.score`, and so are the ranks counted from them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests_support import tiny_config, tiny_controls

import caft
from caft.metrics.retrieval import ranks
from caft.model import ImageFeatures, TextFeatures
from caft.retrieval import PreparedTexts, ScoreKind, rank_all, score_rows
from caft.scoring import CAFTScorer, FunctionScorer, PartScorer, cosine_scores

SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "tiny"
FIXTURE = Path(__file__).parent / "fixtures" / "golden_small"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="reference numbers are not here")
NONE = torch.empty(0)
KINDS = (ScoreKind("whole"), ScoreKind("blended", 0.3), ScoreKind("rerank", 0.3, top_k=7))


def a_model(config):
    """With weights at random everywhere, biases and norms included."""
    torch.manual_seed(0)
    model = caft.create_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attention_pool" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def random_features(model, images=150, texts=200):
    """Features of more images and texts than a tile holds, and a random owner of each text."""
    torch.manual_seed(1)
    width, config = model.config.embed_dim, model.config
    parts = config.text.chunks if config.losses.parts else 1
    fine = torch.randn(images, 8, width) + torch.randn(images, 1, width)
    found = ImageFeatures(torch.randn(images, width), fine, NONE, NONE, [], NONE)
    captions = TextFeatures(torch.randn(texts, parts, width), torch.randn(texts, width))
    return found, captions, torch.randint(0, images, (texts,))


def tensors(images, texts):
    return (
        {"whole": images.whole, "fine": images.fine},
        {"whole": texts.whole, "parts": texts.parts},
    )


def tile_scores(model, images, texts, kinds=KINDS):
    """The whole matrices, from tiles."""
    scorer = CAFTScorer(model)
    ours, captions = tensors(images, texts)
    prepared = PreparedTexts.of(scorer, captions)
    starts = range(0, len(texts.whole), prepared.tile)
    return score_rows(scorer, ours, prepared, kinds, starts)


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (16, 2), (48, 3), (16, 4), (512, 8)])
def test_part_scores_without_the_output_projection_are_the_plain_ones(width, heads):
    model = a_model(tiny_config(embed_dim=width, pool_heads=heads))
    images, texts, _ = random_features(model, images=5, texts=9)
    with torch.no_grad():
        plain = model.part_scores(images, texts)
    part = CAFTScorer(model)
    tile = part.tile(
        part.prepare_images({"whole": images.whole, "fine": images.fine}),
        part.prepare_texts({"whole": texts.whole, "parts": texts.parts}),
        ["part"],
    )
    torch.testing.assert_close(tile["part"], plain, rtol=1e-5, atol=1e-5)


def test_large_logits_of_attention_neither_overflow_nor_lose_the_zero_slot():
    model = a_model(tiny_config(embed_dim=64, pool_heads=4))
    images, texts, _ = random_features(model, images=4, texts=6)
    with torch.no_grad():
        model.attention_pool.to_q.weight.mul_(40)
        plain = model.part_scores(images, texts)
    found = tile_scores(model, images, texts, [ScoreKind("part", 1.0)])["part"]
    assert found.isfinite().all()
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_a_query_that_finds_nothing_scores_a_cosine_of_zero():
    model = a_model(tiny_config())
    with torch.no_grad():
        model.attention_pool.proj.bias.zero_()
        model.attention_pool.to_v.weight.zero_()
        model.attention_pool.to_v.bias.zero_()
    images, texts, _ = random_features(model, images=2, texts=3)
    found = tile_scores(model, images, texts, [ScoreKind("part", 1.0)])["part"]
    torch.testing.assert_close(found, torch.full((2, 3), model.part_bias.item()))


@pytest.mark.parametrize("name", tiny_controls())
def test_every_control_ranks_as_its_own_score_does(name):
    model = a_model(tiny_controls()[name])
    images, texts, owner = random_features(model)
    found = rank_all(CAFTScorer(model), *tensors(images, texts), owner, KINDS)
    for kind in KINDS:
        plain = model.score(images, texts, kind.alpha, kind.top_k)
        t2i, i2t = ranks(plain, owner)
        # a wrong score within rounding of the right one may fall on either side of it
        assert (found[kind.name].text_rank != t2i).sum() <= 1
        assert (found[kind.name].i2t != i2t).sum() <= 1


def test_one_pass_gives_every_alpha():
    model = a_model(tiny_config())
    images, texts, _ = random_features(model)
    kinds = [ScoreKind(f"alpha {alpha}", alpha) for alpha in (0.0, 0.25, 0.5, 1.0)]
    found = tile_scores(model, images, texts, kinds)
    for kind in kinds:
        plain = model.score(images, texts, kind.alpha)
        torch.testing.assert_close(found[kind.name], plain, rtol=1e-5, atol=1e-5)


def test_equal_images_and_captions_tie_wherever_they_stand():
    """A duplicate in another tile scores the same bit by bit, so a tie is seen, and is a miss."""
    model = a_model(tiny_config())
    images, texts, _ = random_features(model, images=150, texts=300)
    owner = torch.arange(300) % 150
    ours, captions = tensors(images, texts)
    for features, (source, copies) in ((ours, (3, (70, 149))), (captions, (3, (131, 299)))):
        for tensor in features.values():
            tensor[list(copies)] = tensor[source].clone()
    found = rank_all(CAFTScorer(model), ours, captions, owner, KINDS[:2])
    for kind in KINDS[:2]:
        scored = tile_scores(model, images, texts, [kind])[kind.name]
        assert (scored[[70, 149]] == scored[3]).all()
        assert (scored[:, [131, 299]] == scored[:, 3:4]).all()
        ranked = found[kind.name]
        assert ranked.text_wrong[3] == ranked.text_right[3] or ranked.text_rank[3] > 1
        assert ranked.text_rank[3] >= 3  # the two duplicates stand before the right image


@pytest.mark.parametrize(
    "folder", [FIXTURE, pytest.param(SHARED, marks=needs_shared)], ids=["fixture", "shared"]
)
def test_golden_scores(folder):
    files = ("weights", "inputs", "outputs")
    weights, inputs, expected = (load_file(folder / f"{name}.safetensors") for name in files)
    model = caft.from_reference(weights, json.loads((folder / "config.json").read_text()))
    with torch.no_grad():
        images = model.encode_image(inputs["images_uint8"], inputs["superpixels"])
        texts = model.encode_text(inputs["tokens"].long())
    kinds = [
        ScoreKind("score_whole"),
        ScoreKind("score_part", 1.0),
        ScoreKind("score_blend_0_3", 0.3),
        ScoreKind("score_blend_0_3_top2", 0.3, top_k=2),
    ]
    for name, scores in tile_scores(model, images, texts, kinds).items():
        torch.testing.assert_close(scores, expected[name], rtol=1e-4, atol=1e-4)


def test_any_function_of_features_is_a_scorer():
    torch.manual_seed(0)
    images, texts = {"whole": torch.randn(70, 12)}, {"whole": torch.randn(140, 12)}
    owner = torch.arange(140) // 2
    kind = replace(KINDS[1], best=2)
    found = rank_all(FunctionScorer(cosine_scores), images, texts, owner, [kind])["blended"]
    t2i, i2t = ranks(cosine_scores(images, texts), owner)
    assert torch.equal(found.text_rank, t2i)
    assert torch.equal(found.i2t, i2t)
    assert found.text_top.shape == (140, 2)


def test_the_stated_work_is_that_of_the_matrix_products():
    """What benchmarks/evaluate.py predicts times from."""
    model = a_model(tiny_config(embed_dim=512, pool_heads=8))
    part = CAFTScorer(model)._part
    assert isinstance(part, PartScorer)
    assert part.flop_per_query(segments=64) == 4 * 64 * 512 + 512 * 512 * 3 // 4
