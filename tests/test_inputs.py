"""The doors of the library take what PyTorch users pass, and refuse the rest with one line."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import tiny_config, tiny_controls

import caft
from caft.errors import DataError
from caft.transforms import normalise

NAMES = ("whole", "fine", "fine_cls", "coarse", "superpixels")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return caft.create_model(tiny_config()).eval()


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    """A picture (32, 32, 3) of all brightnesses."""
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def forms(array, tmp_path_factory) -> dict:
    """One picture in every form."""
    path = tmp_path_factory.mktemp("forms") / "a.png"
    picture = Image.fromarray(array)
    path.write_bytes(png(picture))
    chw = torch.from_numpy(array).permute(2, 0, 1)
    rgba = np.dstack([array, np.full((32, 32, 1), 255, np.uint8)])
    return {
        "path": path,
        "str": str(path),
        "bytes": path.read_bytes(),
        "PIL": picture,
        "HWC": array,
        "RGBA": rgba,
        "RGBA picture": Image.fromarray(rgba),
        "CHW": chw,
        "RGBA tensor": torch.from_numpy(rgba).permute(2, 0, 1),
        "normalised": normalise(chw[None])[0],
        "normalised HWC": normalise(chw[None])[0].permute(1, 2, 0).numpy(),
        "float64": normalise(chw[None])[0].double(),
        "list": [path],
        "tuple": (picture,),
        "list of tensors": [chw],
        "NHWC": array[None],
        "NCHW": chw[None],
        "list, mixed": [path, chw],
    }


FORMS = [
    *("path", "str", "bytes", "PIL", "HWC", "RGBA", "RGBA picture", "CHW", "RGBA tensor"),
    *("normalised", "normalised HWC", "float64", "list", "tuple", "list of tensors", "NHWC"),
    *("NCHW", "list, mixed"),
]


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_every_form_gives_the_same_features(form, forms, model):
    expected = model.encode_image(forms["NCHW"])
    found = model.encode_image(forms[form])
    for name in NAMES:
        rows = getattr(expected, name).expand_as(getattr(found, name))
        torch.testing.assert_close(getattr(found, name), rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_taken_where_one_image_is_shown(form, forms, array, model):
    calls = [
        lambda image: caft.localize(model, image, ["a dog", "a cat"]),
        lambda image: np.stack(caft.hierarchy(model, image)),
        lambda image: caft.draw_panel(model, image, ["a dog"]),
    ]
    for call in calls:
        found = call(forms[form]) if form not in BATCHES else None
        if form in BATCHES:
            several = forms[form]
            found = np.stack([call(one) for one in several])
            expected = np.stack([call(array)] * len(several))
        else:
            expected = call(array)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if form in BATCHES:
        maps = caft.localize(model, forms[form], "a dog")
        assert isinstance(maps, list)
        assert maps[0].shape == (1, 32, 32)


BATCHES = ("list", "tuple", "list of tensors", "NHWC", "NCHW", "list, mixed")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "1", "I;16", "RGBA"])
def test_pictures_of_every_mode(mode, array, model):
    plain = Image.fromarray(array)
    if mode == "I;16":
        picture = Image.fromarray(array[..., 0].astype(np.uint16))
    elif mode == "P":
        picture = plain.convert("P")
        picture.info["transparency"] = 3
    else:
        picture = plain.convert(mode)
    assert model.encode_image(picture).whole.shape == (1, 16)
    assert caft.localize(model, picture, "a dog").shape == (1, 32, 32)
    grey = np.asarray(plain.convert("L"))
    torch.testing.assert_close(
        model.encode_image(grey).whole, model.encode_image(torch.from_numpy(grey)[None]).whole
    )


def floats(low: float, high: float) -> torch.Tensor:
    return torch.linspace(low, high, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


REFUSED = {
    "0 .. 1": (floats(0, 1), r"floats of 0 \.\. 1 that nobody normalised"),
    "one of two": (torch.cat([floats(-1.5, 2), torch.rand(1, 3, 32, 32)]), "nobody normalised"),
    "a single one": (torch.rand(3, 32, 32), "nobody normalised"),
    "half": (torch.rand(1, 3, 32, 32).half(), "nobody normalised"),
    "numpy": (np.random.default_rng(0).random((32, 32, 3)), "nobody normalised"),
    "0 .. 255": (floats(0, 255), r"floats of 0 \.\. 255, .*uint8"),
    "-9": (floats(-9, 0), "which normalised pixels never are"),
    "NaN": (torch.full((1, 3, 32, 32), torch.nan), "NaN"),
    "infinite": (torch.full((1, 3, 32, 32), torch.inf), "NaN or infinity"),
    "int64": (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "images of int64: give uint8"),
    "bool": (torch.zeros(1, 3, 32, 32, dtype=torch.bool), "images of bool"),
    "int64 array": (np.zeros((32, 32, 3), np.int64), "int64"),
    "channels last": (torch.zeros(1, 32, 32, 3, dtype=torch.uint8), r"permute\(0, 3, 1, 2\)"),
    "one, channels last": (torch.zeros(32, 32, 3, dtype=torch.uint8), r"permute\(2, 0, 1\)"),
    "array, channels first": (np.zeros((3, 32, 32), np.uint8), r"arrays are \(H, W, 3\)"),
    "two channels": (torch.zeros(1, 2, 32, 32, dtype=torch.uint8), r"\(B, 3, H, W\)"),
    "rank 2": (torch.zeros(32, 32, dtype=torch.uint8), r"shape \(32, 32\)"),
    "rank 5": (torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8), r"shape \(1, 1, 3, 32, 32\)"),
    "sizes": ([torch.zeros(3, 32, 32), torch.zeros(3, 32, 40)], "several sizes"),
    "no such file": ("nowhere.jpg", "nowhere.jpg: cannot be read"),
    "no image": (b"<html>", "cannot be decoded"),
    "number": (3, "image of type int"),
    "none": ([None], "image 0 of 1: .* type NoneType"),
    "dict": ({"image": 1}, "type dict"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_one_line(kind, model):
    images, match = REFUSED[kind]
    with pytest.raises(DataError, match=match) as caught:
        model.encode_image(images)
    assert "\n" not in str(caught.value)
    if kind in ("0 .. 1", "one of two", "sizes"):  # of a batch; one image may be one shade
        return
    for call in (caft.hierarchy, caft.draw_panel, lambda m, i: caft.localize(m, i, "a dog")):
        with pytest.raises((DataError, TypeError)) as caught:
            call(model, images)
        assert caught.type is DataError
        assert "\n" not in str(caught.value)


def test_values_are_not_looked_at_in_forward_nor_in_graphs(model):
    tokens = model.tokenize(["a dog"] * 4).view(1, 4, -1)
    model(floats(0, 1)[:1], tokens)
    model.encode_image(floats(0, 0.8))  # may be pixels of one shade
    compiled = torch.compile(lambda i: model.encode_image(i).whole, backend="eager", fullgraph=True)
    compiled(floats(0, 1))


def test_labels_are_checked(model):
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    labels = torch.zeros(2, 32, 32, dtype=torch.int32)
    model.encode_image(images, labels)
    model.encode_image(images[0], labels[0])
    model.encode_image(images, labels.numpy())
    for wrong, match in (
        (labels[:1], r"shape \(1, 32, 32\)"),
        (labels[:, :16], r"integer labels \(2, 32, 32\)"),
        (labels.float(), "float32"),
        (labels + 16, r"superpixels of 16 \.\. 16: labels are 0 \.\. 15"),
        (labels - 1, r"-1 \.\. -1"),
    ):
        with pytest.raises(DataError, match=match):
            model.encode_image(images, wrong)


@pytest.mark.parametrize("name", tiny_controls())
def test_an_empty_batch_gives_an_empty_result_of_the_right_shapes(name):
    model = caft.create_model(tiny_controls()[name])
    one = model.eval().encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    text = model.encode_text("A dog. A cat.")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    for empty in ([], torch.empty(0, 3, 32, 32), np.empty((0, 32, 32, 3), np.uint8)):
        found = model.encode_image(empty)
        for field in NAMES:
            assert getattr(found, field).shape == (0, *getattr(one, field).shape[1:])
        shapes = [tuple(level.shape) for level in found.assignments]
        assert shapes == [(0, *level.shape[1:]) for level in one.assignments]
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.eval()
    for empty in ([], torch.empty(0, model.config.text.chunks, 5, dtype=torch.long)):
        texts = model.encode_text(empty)
        assert texts.parts.shape == (0, *text.parts.shape[1:])
        assert texts.whole.shape == (0, 16)
    assert model.score(found, text).shape == (0, 1)
    assert model.score(one, texts).shape == (1, 0)
    assert model.score(found, texts).shape == (0, 0)
    assert model.tokenize([]).shape[0] == 0
    picture = np.zeros((40, 50, 3), np.uint8)
    assert caft.localize(model, picture, []).shape == (0, 40, 50)
    assert caft.localize(model, [], ["a dog"]) == []
    assert caft.draw_panel(model, []) == []


def test_a_text_is_one_text_and_not_its_letters(model, array):
    assert torch.equal(model.tokenize("a dog"), model.tokenize(["a dog"]))
    caption = "A dog sleeps. A cat looks."
    torch.testing.assert_close(model.encode_text(caption).whole, model.encode_text([caption]).whole)
    assert caft.localize(model, array, "a dog").shape == (1, 32, 32)
    one, listed = (caft.draw_panel(model, array, s) for s in ("a dog", ["a dog"]))
    assert np.array_equal(one, listed)
    assert torch.equal(model.tokenize(np.array(["a dog"])), model.tokenize("a dog"))


def test_what_is_no_text_is_one_line(model, array):
    for texts, match in (
        (["a dog", None], "text 1 of 2 is of type NoneType"),
        ([b"a dog"], "type bytes"),
        (b"a dog", "texts of type bytes"),
        ({"a dog"}, "texts of type set"),
        (3, "texts of type int"),
    ):
        for call in (model.tokenize, model.encode_text, lambda t: caft.localize(model, array, t)):
            with pytest.raises(DataError, match=match) as caught:
                call(texts)
            assert "\n" not in str(caught.value)


def test_what_are_no_token_ids_is_one_line(model):
    tokens = model.tokenize(["a dog"] * 4)
    three = tokens.view(1, 4, -1)
    torch.testing.assert_close(
        model.encode_text(three.numpy()).whole, model.encode_text(three).whole
    )
    for wrong, match in (
        (tokens, r"model\.tokenize\(texts\)\.view\(B, 4, -1\)"),
        (three[:, :3], "at least 4"),
        (three.float(), "tokens of float32"),
        (three.bool(), "tokens of bool"),
        (three + 49408, r"the vocabulary has ids 0 \.\. 49407"),
        (-three, "the vocabulary"),
        (torch.nn.functional.pad(three, (20, 0)), "longer than the context of 16"),
    ):
        with pytest.raises(DataError, match=match):
            model.encode_text(wrong)


@pytest.mark.parametrize("name", ["caft", "caft_softmax", "clip", "flair"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_towers_scores_and_heat_maps(name, dtype, array):
    torch.manual_seed(0)
    model = caft.create_model(tiny_controls()[name]).eval()
    images, captions = [array, array[::-1].copy()], ["A dog. A cat.", "Two birds."]

    def results(model):
        features, texts = model.encode_image(images), model.encode_text(captions)
        heat = caft.localize(model, array, ["a dog"])
        return features.whole, texts.whole, model.score(features, texts), torch.from_numpy(heat)

    with torch.no_grad():
        expected = results(model)
        found = results(model.to(dtype))
    for ours, full in zip(found, expected, strict=True):
        assert torch.isfinite(ours.float()).all()
        error = (ours.float() - full).norm() / full.norm()
        assert error < 0.1, error
    assert found[0].dtype == dtype
