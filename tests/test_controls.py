"""Controls are configurations of the one model: what each has, scores, shows and learns from."""

import numpy as np
import pytest
import torch
from tests_support import random_images, tiny_controls

import caft
from caft.caption_sampling import sample_parts
from caft.captions import even_chunks
from caft.checkpoint import save_weights, write_manifest
from caft.losses import draw_negatives
from pipelines.demo.scenes import SceneConfig, render_scene
from pipelines.train.distributed import TrainingModel
from pipelines.train.schedule import parameter_groups

CONTROLS = tiny_controls()
TEXTS = ["a red dog", "two small cats", "one", "a green bird", "the sky", "x", "a boat", "snow"]
every_control = pytest.mark.parametrize("name", CONTROLS)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {name: caft.create_model(config).eval() for name, config in CONTROLS.items()}


def features_of(model, captions=2):
    count = captions * model.config.text.chunks
    tokens = model.tokenize(TEXTS[:count]).view(captions, model.config.text.chunks, -1)
    return model.encode_image(random_images(3)), model.encode_text(tokens)


@every_control
def test_every_parameter_learns_in_the_trainer_s_own_step(name):
    """DeepSpeed waits for the gradient of every parameter; FLOP counts take all for used."""
    torch.manual_seed(0)
    model = caft.create_model(CONTROLS[name])
    chunks = CONTROLS[name].text.chunks
    tokens = model.tokenize((2 * TEXTS)[: 2 * (chunks + 1)]).view(2, chunks + 1, -1)  # one extra
    grid = torch.arange(16).view(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)
    negatives = draw_negatives(2, chunks + 1, seed=0, block=2)
    loss = TrainingModel(model, 2)(random_images(2), grid.expand(2, -1, -1), tokens, negatives)
    loss.total.backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == []
    terms = loss.terms
    assert sum(term.item() for term in terms.values()) == pytest.approx(loss.total.item())
    assert ("whole" in terms) == model.config.losses.has_whole
    assert ("part_multi_positive" in terms) == model.config.losses.parts


@pytest.fixture
def one_thread():
    """Models as small as these are many times faster without a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["caft_no_parts", "clip", "clip_softmax", "flair"])
def test_a_handful_of_scenes_is_learned(name, one_thread):
    torch.manual_seed(0)
    config = CONTROLS[name]
    small = {"tokenizer": "demo", "vocab_size": 1536, "context_length": 128}
    text = config.text.model_copy(update=small)
    model = caft.create_model(config.model_copy(update={"text": text, "init_logit_bias": -1.0}))
    scenes = [render_scene(seed, SceneConfig()) for seed in range(4)]
    pixels = torch.stack([torch.from_numpy(scene.image[::3, ::3].copy()) for scene in scenes])
    images = pixels.permute(0, 3, 1, 2)
    parts = [part for scene in scenes for part in even_chunks(scene.sentences, text.chunks)]
    tokens = model.tokenize(parts).view(len(scenes), text.chunks, -1)
    superpixels = model.superpixel_labels(images)
    training = TrainingModel(model, block_size=len(scenes))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=7e-4)
    for step in range(400):
        optimizer.zero_grad()
        negatives = draw_negatives(len(scenes), text.chunks, step, len(scenes))
        training(images, superpixels, tokens, negatives).total.backward()
        optimizer.step()
        model.clamp_scales_()
    model.eval()
    scores = model.score(model.encode_image(images), model.encode_text(tokens))
    assert scores.argmax(dim=1).tolist() == scores.argmax(dim=0).tolist() == [0, 1, 2, 3]


@every_control
def test_features_have_their_shapes_and_come_back_from_a_checkpoint(models, name, tmp_path):
    model = models[name]
    images, texts = features_of(model)
    assert images.whole.shape == images.fine_cls.shape == (3, 16)
    assert texts.whole.shape == (2, 16)
    assert images.superpixels.shape == (3, 32, 32)
    if model.config.image.encoder == "flat":
        assert images.assignments == []
        assert images.fine.shape == images.coarse.shape == (3, 16, 16)
        cells = images.superpixels[0].view(4, 8, 4, 8).permute(0, 2, 1, 3).reshape(16, 64)
        assert torch.equal(cells, torch.arange(16)[:, None].expand(-1, 64))
    else:
        assert images.coarse.shape == (3, 2, 16)
    save_weights(model, tmp_path / "final")
    write_manifest(tmp_path / "final", {})
    again = caft.load_model(tmp_path / "final")
    assert again.config == model.config
    torch.testing.assert_close(features_of(again)[0].whole, images.whole)


def test_a_flat_encoder_has_its_patches_whatever_label_map_is_given(models):
    images = random_images(2)
    ours = models["clip"].encode_image(images)
    given = models["clip"].encode_image(images, torch.zeros(2, 32, 32, dtype=torch.long))
    assert torch.equal(ours.superpixels, given.superpixels)
    assert torch.equal(ours.whole, given.whole)
    assert models["clip"].encode_image(torch.cat([images, images], dim=3)).fine.shape[1] == 32


@pytest.mark.parametrize(
    ("name", "own"),
    [("caft_no_parts", "whole"), ("clip", "whole"), ("clip_softmax", "whole"), ("flair", "part")],
)
def test_a_model_with_one_kind_of_logit_scores_with_it_whatever_alpha(models, name, own):
    model = models[name]
    images, texts = features_of(model)
    logits = getattr(model, f"{own}_scores")(images, texts)
    for alpha in (0.0, 0.3, 1.0):
        torch.testing.assert_close(model.score(images, texts, alpha), logits)
    best = model.score(images, texts, top_k=1)
    assert torch.equal(best.isfinite(), logits == logits.amax(dim=1, keepdim=True))
    assert list(model.scales()) == [own]


def test_without_part_losses_the_other_sub_captions_are_not_read(models):
    model = models["caft_no_parts"]
    tokens = model.tokenize(TEXTS).view(1, 8, -1)
    assert model.pack_texts(tokens).parts == 4
    torch.testing.assert_close(
        model.encode_text(tokens).whole, model.encode_text(tokens[:, :4]).whole
    )


def test_a_mean_of_chunks_knows_no_order_and_of_one_chunk_is_that_chunk(models):
    model = models["caft_mean_text"]
    tokens = model.tokenize(TEXTS[:4]).view(1, 4, -1)
    whole = model.encode_text(tokens).whole
    torch.testing.assert_close(model.encode_text(tokens.flip(1)).whole, whole)
    alone = torch.stack([model.encode_text(tokens[:, [n] * 4]).whole for n in range(4)])
    torch.testing.assert_close(alone.mean(dim=0), whole)
    with_transformer = models["caft"]
    moved = with_transformer.encode_text(tokens.flip(1)).whole
    assert not torch.allclose(moved, with_transformer.encode_text(tokens).whole)


def test_one_chunk_is_the_whole_caption_in_training_and_evaluation():
    sentences = ["one", "two", "three", "four", "five"]
    joined = "one. two. three. four. five"
    rng = np.random.default_rng(0)
    assert sample_parts([{"kind": "long", "sentences": sentences}], rng, 1, 0) == [joined]
    assert even_chunks(sentences, 1) == [joined]
    assert even_chunks(sentences[:1], 1) == ["one"]


@every_control
def test_sentences_have_heat_maps_and_images_their_levels(models, name):
    model = models[name]
    image = random_images(1, 48)[0].permute(1, 2, 0).numpy()[:, :40]
    maps = caft.localize(model, image, ["a red dog", "the sky"])
    assert maps.shape == (2, 48, 40)
    assert np.isfinite(maps).all()
    assert (maps.max(axis=(1, 2)) > maps.min(axis=(1, 2))).all()
    levels = caft.hierarchy(model, image)
    assert [level.shape for level in levels] == [(48, 40)] * len(model.config.image.segments)
