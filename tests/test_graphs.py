"""Both towers as exported graphs: by torch.export, and as ONNX in its runtime."""

import pytest
import torch
from tests_support import random_images, tiny_config, tiny_controls
from torch import nn

import caft
from caft.transforms import normalise


class ImageTower(nn.Module):
    def __init__(self, model: caft.CAFT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, superpixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.model.encode_image(images, superpixels)
        return features.whole, features.fine


class TextTower(nn.Module):
    def __init__(self, model: caft.CAFT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.model.encode_text(tokens)
        return features.whole, features.parts


def case(config):
    """The towers of a model with the inputs of each, and others of the same shapes."""
    torch.manual_seed(0)
    model = caft.create_model(config).eval()
    pixels = random_images(4)
    labels = model.superpixel_labels(pixels)
    halves = zip(pixels.split(2), labels.split(2), strict=True)
    images = [(normalise(part), of_part) for part, of_part in halves]
    words = ["a red dog", "two small cats on a mat", "x", "one two three four five six"]
    tokens = model.tokenize(words * 4).view(2, 2, 4, -1)
    return (ImageTower(model), *images), (TextTower(model), (tokens[0],), (tokens[1].flip(1),))


@pytest.mark.parametrize("name", ["caft", "caft_no_parts", "clip", "flair"])
@torch.no_grad()
def test_exported_towers_compute_what_the_model_does(name):
    for tower, example, other in case(tiny_controls()[name]):
        program = torch.export.export(tower, example)
        for arguments in (example, other):
            for ours, expected in zip(program.module()(*arguments), tower(*arguments), strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_whole_model_exports_with_its_features():
    model = caft.create_model(tiny_config()).eval()
    images, tokens = normalise(random_images(2)), model.tokenize(["a dog"] * 8).view(2, 4, -1)
    program = torch.export.export(model, (images, tokens))
    found, expected = program.module()(images, tokens), model(images, tokens)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.whole, theirs.whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_towers_as_onnx_compute_what_the_model_does(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for tower, example, other in case(tiny_config()):
        file = tmp_path / f"{type(tower).__name__}.onnx"
        torch.onnx.export(tower.eval(), example, file, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        for arguments in (example, other):
            given = dict(zip(names, [a.numpy() for a in arguments], strict=True))
            for ours, expected in zip(session.run(None, given), tower(*arguments), strict=True):
                torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=1e-3, atol=1e-4)
