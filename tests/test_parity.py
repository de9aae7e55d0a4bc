"""The model against a second, plain implementation, on shapes other than the released ones.
Widths, depths, heads, batches, captions and image sizes vary; all superpixels are kept."""

import pytest
import torch
from make_golden import changed, random_inputs
from plain_caft import PlainCAFT, farthest_points
from plain_weights import random_state_dict

import caft
from caft.graph_pool import farthest_point_seeds, take_tokens
from caft.losses import caft_loss
from caft.transforms import normalise

TOLERANCE = 1e-4
ROUNDING = 1e-8  # of the largest gradient: some are zero, as that of a key's bias


CASES = {
    # name: (configuration, B, K, T, what else random_inputs takes)
    "as the fixture, another seed": (changed(), 3, 5, 12, {}),
    "uneven groups": (changed(vision_cfg={"depth": [2, 1, 3, 2]}), 2, 4, 12, {}),
    "wider, one head": (
        changed(embed_dim=40, vision_cfg={"embed_dim": 48, "num_heads": 1, "mlp_ratio": 4}),
        *(2, 4, 12, {}),
    ),
    "six heads, fewer segments": (
        changed(vision_cfg={"num_heads": 6, "num_clusters": [7, 5, 2]}),
        *(2, 6, 12, {}),
    ),
    "a wider text encoder": (
        changed(
            text_cfg={"width": 120, "heads": 6, "layers": 3, "vocab_size": 300},
            text_coarse_cfg={"width": 120, "heads": 3, "layers": 3},
        ),
        *(2, 8, 12, {}),
    ),
    "three chunks": (changed(text_coarse_cfg={"context_length": 3}), 3, 4, 12, {}),
    "shorter than the context": (changed(), 2, 4, 7, {}),
    "small images": (
        changed(vision_cfg={"image_size": 64, "num_clusters": [8, 4, 2]}),
        *(5, 4, 12, {}),
    ),
    "not square": (changed(), 2, 4, 12, {"shape": (64, 128)}),
    "larger than configured": (changed(), 2, 4, 12, {"shape": (112, 160)}),
    "many dead superpixels": (changed(), 2, 4, 12, {"empty": 17}),
    "a single pair": (changed(), 1, 4, 12, {}),
    "many pairs": (changed(), 9, 4, 5, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_features_losses_scores_and_gradients_agree(name):
    config, batch, parts, length, options = CASES[name]
    seed = 100 + list(CASES).index(name)
    weights = random_state_dict(config, seed)
    inputs = random_inputs(config, batch, parts, length, seed, **options)
    plain, model = PlainCAFT(weights, config), caft.from_reference(weights, config)

    images, tokens = inputs["images_uint8"], inputs["tokens"].long()
    plain_images = plain.encode_image(normalise(images), inputs["superpixels"])
    plain_texts = plain.encode_text(tokens)
    expected = plain.losses(plain_images, plain_texts, inputs["negatives"])
    image_features, text_features = model(images, tokens, inputs["superpixels"])
    loss = caft_loss(image_features, text_features, model, negatives=inputs["negatives"].long())
    for ours, theirs in (
        ("whole", "whole_image"),
        *((n, n) for n in ("fine", "fine_cls", "coarse")),
    ):
        assert_close(getattr(image_features, ours), plain_images[theirs])
    for level, assignment in enumerate(image_features.assignments, start=1):
        assert_close(assignment, plain_images[f"pool_logits{level}"].softmax(dim=-1))
    assert_close(text_features.parts, plain_texts["part_text"])
    assert_close(text_features.whole, plain_texts["whole_text"])
    for term in ("part_text_conditioned", "part_multi_positive", "whole", "total"):
        assert_close(getattr(loss, term), expected[f"loss_{term}"])
    for scoring in ({"alpha": 0}, {"alpha": 1}, {}, {"top_k": 1}):
        ours = model.score(image_features, text_features, **scoring)
        reference = plain.score(plain_images, plain_texts, **scoring)
        kept = reference.isfinite()
        assert torch.equal(ours.isfinite(), kept)
        assert_close(ours[kept], reference[kept])

    loss.total.backward()
    expected["loss_total"].backward()
    gradients = {key: value.grad for key, value in plain.parameters.items()}
    largest = max(float(value.abs().max()) for value in gradients.values())
    by_our_names = caft.from_reference(plain.buffers | gradients, config)
    for key, value in by_our_names.named_parameters():
        assert_close(model.get_parameter(key).grad, value, rounding=ROUNDING * largest)


def test_in_training_mode_batch_statistics_are_used_and_kept_alike():
    config = changed()
    weights, inputs = random_state_dict(config, 7), random_inputs(config, 3, 4, 12, 7)
    plain, model = PlainCAFT(weights, config), caft.from_reference(weights, config)
    model.image_encoder.stem.train()
    ours = model.image_encoder.stem(normalise(inputs["images_uint8"]))
    stem = plain.encode_image(
        normalise(inputs["images_uint8"]), inputs["superpixels"], training=True
    )["stem"]
    assert_close(ours.permute(0, 2, 3, 1), stem)
    kept = plain.buffers["visual.patch_embed.proj.4.running_var"]
    assert_close(model.image_encoder.stem[4].running_var, kept)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("count", "width", "segments"), [(196, 768, 64), (64, 48, 32), (36, 24, 16)]
)
def test_seeds_are_those_of_stepwise_float64_sampling(count, width, segments, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = 3 + torch.randn(2, count, width, generator=generator)  # far from the origin
    live = torch.rand(2, count, generator=generator) > 0.1
    nearest = live.float().argmax(dim=1, keepdim=True)
    tokens = torch.where(live[..., None], tokens, take_tokens(tokens, nearest))  # duplicates
    assert torch.equal(
        farthest_point_seeds(tokens, segments, live, keep_dead=True),
        farthest_points(tokens, segments, live),
    )
    assert torch.equal(farthest_point_seeds(tokens, segments), farthest_points(tokens, segments))


def assert_close(ours, reference, rounding=0.0):
    error, size = (ours - reference).abs().max(), reference.abs().max()
    assert error <= TOLERANCE * size + rounding, f"error {error:.2e} at a size of {size:.2e}"
