"""The train step as one graph: torch.compile finds no break in it, and its numbers stay."""

import pytest
import torch
from tests_support import random_images, tiny_config

import caft
from caft.batch_norm import NormBlocks, set_norm_blocks
from caft.dropout import Draws
from caft.losses import caft_loss, draw_negatives
from caft.superpixels import superpixel_labels


def train_step(model, images, superpixels, texts, negatives, draws):
    features = model.encode_image(images, superpixels, draws)
    captions = model.encode_text(texts)
    return caft_loss(features, captions, model, negatives, block_size=2).total


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = caft.create_model(tiny_config())
    set_norm_blocks(model, NormBlocks(2))
    images = random_images(4)
    superpixels = superpixel_labels(images, model.config.image.superpixels)
    tokens = model.tokenize(["a red dog", "two cats on a mat", "one", "x y z"] * 4)
    texts = model.part_text_encoder.pack(tokens.view(4, 4, -1), row_multiple=4)
    draws = Draws(torch.tensor(7), torch.arange(4))
    return model, (images, superpixels, texts, draw_negatives(4, 4, 0, 2), draws)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_train_step_is_one_graph_with_the_same_numbers(case, recompute):
    model, inputs = case
    model.recompute_activations(recompute)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(train_step)(model, *inputs)
    assert explained.graph_break_count == 0, explained.break_reasons
    results = []
    for step in (train_step, torch.compile(train_step, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = step(model, *inputs)
        loss.backward()
        results.append((loss, model.image_encoder.cls_token.grad.clone()))
    for ours, eager in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    model.recompute_activations(False)


def test_recomputed_activations_change_no_gradient(case):
    model, inputs = case
    gradients = []
    for recompute in (False, True):
        model.recompute_activations(recompute)
        model.zero_grad()
        train_step(model, *inputs).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    model.recompute_activations(False)
    for ours, plain in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, plain)
