"""Pictures as a model is shown them: crop and squash, every form of a file, and the way back."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests_support import tiny_config, tiny_controls

import caft
from caft.errors import DataError
from caft.heat_maps import UNSEEN, encode_one, encode_sentences, heat_maps, segment_hierarchy
from caft.pictures import UNSEEN_LIGHT, to_canvas
from caft.preprocessing import eval_image, read_picture, to_picture
from caft.superpixels import superpixel_labels

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = SHARED / "golden" / "pictures_crop224.safetensors"
PHOTOGRAPHS = sorted(
    (Path(__file__).parents[1] / "pipelines" / "demo" / "photographs").glob("*.jpg")
)[:12]
NOISE = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)


def published(picture: Image.Image, size_px: int) -> torch.Tensor:
    """The published evaluation's rule, written out with Pillow alone."""
    picture = picture.convert("RGB")
    width, height = picture.size
    if width <= height:
        size = (size_px, int(size_px * height / width))
    else:
        size = (int(size_px * width / height), size_px)
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - size_px) / 2) for side in size)
    picture = picture.crop((left, top, left + size_px, top + size_px))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def model_of(preprocess: str, name: str = "caft") -> caft.CAFT:
    torch.manual_seed(0)
    config = tiny_controls()[name]
    image = config.image.model_copy(update={"preprocess": preprocess})
    return caft.create_model(config.model_copy(update={"image": image})).eval()


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.skipif(not GOLDEN.exists(), reason="reference pictures are not here")
def test_a_crop_is_the_published_one_pixel_by_pixel():
    for name, expected in load_file(GOLDEN).items():
        path = next((SHARED / "data" / "coco_cc").rglob(name))
        assert torch.equal(eval_image(path, 224, "crop"), expected)


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_every_form_of_a_picture_gives_the_published_crop(path):
    model = caft.create_model(
        tiny_config(image=tiny_config().image.model_copy(update={"preprocess": "crop"}))
    )
    with Image.open(path) as picture:
        expected = published(picture, 32)
        pixels = np.array(picture.convert("RGB"))
    assert torch.equal(eval_image(path, 224, "crop"), published(Image.open(path), 224))
    forms = [path, str(path), path.read_bytes(), Image.open(path), pixels]
    forms.append(torch.from_numpy(pixels).permute(2, 0, 1))
    for form in forms:
        shown = model.preprocess(form)
        assert shown.dtype == torch.uint8
        assert torch.equal(shown, expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_modes_are_converted_as_the_published_evaluation_does(mode):
    if mode == "I;16":
        picture = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 2)
    else:
        picture = Image.fromarray(NOISE).convert(mode)
    data = encoded(picture, "TIFF" if mode == "CMYK" else "PNG")
    assert torch.equal(eval_image(data, 64, "crop"), published(picture, 64))
    assert torch.equal(eval_image(picture, 64, "crop"), published(picture, 64))
    assert eval_image(data, 64, "squash").shape == (3, 64, 64)


def test_a_cmyk_jpeg_is_read_as_pillow_reads_it():
    data = encoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG")
    assert torch.equal(eval_image(data, 64, "crop"), published(Image.open(io.BytesIO(data)), 64))


def test_an_orientation_is_left_aside_as_published_and_applied_where_it_always_was():
    picture = Image.fromarray(NOISE)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data = encoded(picture, "PNG", exif=exif)
    assert torch.equal(eval_image(data, 64, "crop"), published(picture, 64))
    upright = np.rot90(NOISE, -1)
    for form in (encoded(picture, "JPEG", exif=exif, quality=100, subsampling=0), data):
        for given in (form, Image.open(io.BytesIO(form))):
            shown = read_picture(given, "squash")
            assert shown.shape == upright.shape
            assert cv2.PSNR(shown, np.ascontiguousarray(upright)) > 30


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 5000), (3000, 2), (300_000, 1), (2, 70_000), (224, 225), (31, 997)]
)
def test_any_shape_of_picture_can_be_shown(size):
    width, height = size
    rng = np.random.default_rng(width)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    shown = eval_image(picture, 224, "crop")
    if max(size) / min(size) < 2000:
        assert torch.equal(shown, published(picture, 224))
    else:  # one pixel, and what its neighbours add to it
        assert shown.shape == (3, 224, 224)
    assert eval_image(picture, 224, "squash").shape == (3, 224, 224)
    seen = ~np.isnan(to_picture(np.zeros((224, 224), np.float32), height, width, "crop", np.nan))
    assert seen.any(axis=0).sum() == pytest.approx(min(size), abs=1)
    assert seen.any(axis=1).sum() == pytest.approx(min(size), abs=1)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (b"no image", "image of 8 bytes cannot be decoded"),
        (b"", "image of 0 bytes cannot be decoded"),
        ("nowhere.jpg", "nowhere.jpg: cannot be read as a picture: No such file"),
        (np.zeros((8, 8, 3), np.float32), "picture of float32: uint8 values of 0 .. 255 are due"),
        (torch.zeros(3, 8, 8), "picture of float32"),
        (np.zeros((8, 8, 3), np.uint16), "picture of uint16"),
        (np.zeros((3, 8, 9), np.uint8), r"picture of shape \(3, 8, 9\): arrays are \(H, W, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "picture of shape"),
        (np.zeros((0, 8, 3), np.uint8), "picture of shape"),
        (7, "picture of type int"),
    ],
)
@pytest.mark.parametrize("preprocess", ["crop", "squash"])
def test_what_is_no_picture_is_refused_in_one_line(picture, said, preprocess):
    with pytest.raises(DataError, match=said) as refused:
        eval_image(picture, 32, preprocess)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("preprocess", ["crop", "squash"])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, preprocess):
    (tmp_path / "a.jpg").write_bytes(PHOTOGRAPHS[0].read_bytes()[:300])
    with pytest.raises(DataError, match=r"a\.jpg: image of 300 bytes cannot be decoded"):
        eval_image(tmp_path / "a.jpg", 32, preprocess)


@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (61, 97), (500, 333), (20, 30)])
def test_what_the_model_sees_lies_on_the_pixels_it_came_from(shape):
    """A picture of its own coordinates is shown and mapped back."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    for axis, side in ((y, height), (x, width)):
        ramp = (axis * 255 / side).round().astype(np.uint8)
        shown = eval_image(ramp, 64, "crop")[0].numpy().astype(np.float32)
        back = to_picture(shown, height, width, "crop", np.nan)
        seen = ~np.isnan(back)
        assert np.abs(back - ramp)[seen].max() <= 2 + 255 / min(shape) + 255 / 64
        assert seen.mean() == pytest.approx(min(shape) / max(shape), abs=2 / min(shape))
        rows, columns = np.nonzero(seen)
        assert abs((rows.min() + rows.max()) / 2 - (height - 1) / 2) <= 1
        assert abs((columns.min() + columns.max()) / 2 - (width - 1) / 2) <= 1


@pytest.mark.parametrize("name", ["caft", "caft_no_parts", "clip"])
def test_heat_maps_and_segments_say_what_was_not_seen(name):
    model, sentences = model_of("crop", name), ["a red dog", "the sky"]
    image = np.random.default_rng(1).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    heat = caft.localize(model, image, sentences)
    assert heat.shape == (2, 32, 64)
    assert np.isnan(heat[:, :, :16]).all()
    assert np.isnan(heat[:, :, 48:]).all()
    square = np.ascontiguousarray(image[:, 16:48])
    inside = caft.localize(model, square, sentences)
    np.testing.assert_allclose(heat[:, :, 16:48], inside, rtol=1e-5)
    for labels, inside in zip(
        caft.hierarchy(model, image), caft.hierarchy(model, square), strict=True
    ):
        assert (labels[:, :16] == UNSEEN).all()
        assert (labels[:, 48:] == UNSEEN).all()
        np.testing.assert_array_equal(labels[:, 16:48], inside)
    whole = caft.localize(model_of("squash", name), image, sentences)
    assert not np.isnan(whole).any()


def test_heat_maps_of_a_squashed_picture_stretch_over_all_of_it():
    model = model_of("squash")
    image = np.random.default_rng(2).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    features = encode_one(model, image)
    heats = heat_maps(model, features, encode_sentences(model, ["a red dog"]))
    fitted = cv2.resize(heats[0], (80, 48), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(caft.localize(model, image, ["a red dog"])[0], fitted)
    levels = segment_hierarchy(features)
    for labels, found in zip(levels, caft.hierarchy(model, image), strict=True):
        fitted = cv2.resize(labels[0].int().numpy(), (80, 48), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(found, fitted)


def test_a_panel_shows_in_the_dark_what_was_not_seen():
    model = model_of("crop")
    image = np.full((96, 192, 3), 200, np.uint8)
    image[:, 60:130] = NOISE[:70, :96].transpose(1, 0, 2)
    panel = caft.draw_panel(model, image, ["a red dog"])
    height, width = to_canvas(image).shape[:2]
    assert (panel[10 : 10 + height, 10 : 10 + width // 5] == 200).all()  # the image itself
    drawn = [(10, 10 + n * (width + 10)) for n in range(1, 5)]
    for top, left in drawn:
        margin = panel[top : top + height, left : left + width // 5]
        assert (margin == int(UNSEEN_LIGHT * 200)).all()


def test_a_crop_is_given_superpixels_of_its_own():
    model = model_of("crop")
    shown = model.preprocess(NOISE)[None]
    cut = superpixel_labels(shown, model.config.image.superpixels)
    assert torch.equal(encode_one(model, NOISE).superpixels, cut)
    assert len(cut.unique()) == model.config.image.superpixel_count
