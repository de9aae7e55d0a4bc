"""The residual stream in the precision of products: half the bytes, nearly the same features."""

import torch
from tests_support import random_images, tiny_config

import caft


def test_low_residuals_change_features_by_rounding_alone_and_are_off_by_default():
    torch.manual_seed(0)
    model = caft.create_model(tiny_config()).eval()
    images, tokens = random_images(3), model.tokenize(["a red dog", "two cats"] * 6).view(3, 4, -1)
    streams, found = [], []
    for block in model.modules():
        if isinstance(block, caft.layers.Block):
            block.register_forward_hook(lambda _, __, out: streams.append(out.dtype))
    for on in (None, True, False):
        if on is not None:
            model.low_residuals(on)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = model.encode_image(images), model.encode_text(tokens)
        assert set(streams) == {torch.bfloat16 if on else torch.float32}
        streams.clear()
        found.append([features[0].whole.float(), features[1].whole.float()])
    for default, low, high in zip(*found, strict=True):
        assert torch.equal(default, high)
        assert torch.cosine_similarity(default, low).min() > 0.99
