"""Pictures: sizes, nested colours, maps that have nothing to show, and the panel of all."""

import base64

import cv2
import numpy as np
import pytest
import torch
from tests_support import random_images, tiny_controls

import caft
from caft.pictures import (
    TARGET_SIDE_PX,
    data_url,
    draw_borders,
    draw_heat,
    draw_hierarchy,
    heat_colours,
    save_picture,
    to_canvas,
)

GREY = np.full((96, 96, 3), 128, dtype=np.uint8)
ROWS, COLUMNS = np.mgrid[:96, :96]
FINE = ROWS // 24 * 4 + COLUMNS // 24  # 16 segments, in 4 quarters, in 2 halves
MIDDLE = ROWS // 48 * 2 + COLUMNS // 48
COARSE = COLUMNS // 48


def test_small_images_are_enlarged_pixel_by_pixel():
    image = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    canvas = to_canvas(image)
    assert canvas.shape == (288, 240, 3)
    np.testing.assert_array_equal(canvas[1::3, 1::3], image)


@pytest.mark.parametrize("shape", [(240, 320), (700, 300), (150, 150)])
def test_large_images_are_brought_to_one_size(shape):
    canvas = to_canvas(np.zeros((*shape, 3), np.uint8))
    assert max(canvas.shape) == TARGET_SIDE_PX
    assert canvas.shape[0] / canvas.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.02)


def test_a_data_url_holds_the_picture():
    head, _, body = data_url(GREY).partition(",")
    assert head == "data:image/webp;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(body), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == GREY.shape
    assert abs(decoded.astype(int) - 128).max() < 4


def test_borders_are_drawn_between_segments_alone():
    drawn = draw_borders(to_canvas(GREY), MIDDLE)
    changed = (drawn != 128).any(axis=-1)
    assert changed[144].all()
    assert changed[:, 144].all()
    assert changed.sum() == 288 + 287


def hues(picture, labels):
    """Mean hue in degrees and colour per label, away from the white lines."""
    found = {}
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    for label in np.unique(labels):
        inside = cv2.erode((labels == label).astype(np.uint8), np.ones((3, 3)))
        y, x = (3 * np.argwhere(inside)[len(np.argwhere(inside)) // 2] + 1).tolist()
        found[int(label)] = (2 * int(hsv[y, x, 0]), tuple(picture[y, x].tolist()))
    return found


def test_a_segment_is_a_shade_of_the_one_it_belongs_to():
    levels = [FINE, MIDDLE, COARSE]
    pictures = draw_hierarchy(to_canvas(GREY), levels)
    coloured = [hues(picture, level) for picture, level in zip(pictures, levels, strict=True)]
    for shades in coloured:
        assert len({colour for _, colour in shades.values()}) == len(shades)
    parent_of = {int(f): int(c) for f, c in zip(FINE.ravel(), COARSE.ravel(), strict=True)}
    for label, (hue, _) in coloured[0].items():
        distances = {
            coarse: min(abs(hue - other), 360 - abs(hue - other))
            for coarse, (other, _) in coloured[-1].items()
        }
        assert min(distances, key=distances.get) == parent_of[label]


def test_one_segment_on_every_level_can_be_drawn():
    nothing = np.zeros((96, 96), int)
    pictures = draw_hierarchy(to_canvas(GREY), [nothing] * 3)
    assert len({tuple(picture[9, 9]) for picture in pictures}) == 1


def test_heat_goes_from_its_least_to_its_greatest_value():
    heat = np.linspace(0.2, 0.3, 96 * 96, dtype=np.float32).reshape(96, 96)
    drawn = draw_heat(to_canvas(GREY), heat, None).astype(int)
    ends = heat_colours(np.array([[0.0, 1.0]])).astype(int)
    for place, end in (((0, 0), ends[0, 0]), ((-1, -1), ends[0, 1])):
        assert abs(drawn[place] - (0.38 * 128 + 0.62 * end)).max() <= 3


def test_a_constant_map_and_a_mask_are_drawn_without_complaint(recwarn):
    mask = np.zeros((48, 48), bool)
    mask[12:36, 12:36] = True
    drawn = draw_heat(to_canvas(GREY), np.full((96, 96), 0.1, np.float32), mask)
    assert (drawn.reshape(-1, 3).max(axis=0) > 250).all()  # the outline is white
    assert not recwarn.list


def test_segments_are_outlined_on_a_heat_map():
    segments = np.zeros((96, 96), int)
    segments[:, 48:] = 1
    heat = np.full((96, 96), 0.1, np.float32)
    plain, lined = (draw_heat(to_canvas(GREY), heat, None, s).astype(int) for s in (None, segments))
    changed = (lined != plain).any(axis=-1)
    border = changed.shape[1] // 2
    assert changed[:, border].all()
    assert changed.sum() == changed.shape[0]
    assert (lined > plain)[changed].all()  # lighter, and the heat still shows


@pytest.mark.parametrize(("name", "in_first_row"), [("caft", 5), ("clip", 2)])
def test_a_panel_holds_every_picture_and_a_row_for_each_five_sentences(name, in_first_row):
    torch.manual_seed(0)
    model = caft.create_model(tiny_controls()[name]).eval()
    image = random_images(1, 96)[0].permute(1, 2, 0).numpy()[:, :64]
    canvas = to_canvas(image)
    height, width = canvas.shape[:2]
    sentences = [f"a red dog and {n} cats that sleep on a very wide sofa" for n in range(6)]
    alone, whole = caft.draw_panel(model, image), caft.draw_panel(model, image, sentences)
    assert alone.shape[1] // width == in_first_row
    assert whole.shape[1] // width == 5
    assert whole.shape[0] > alone.shape[0] + 2 * height
    np.testing.assert_array_equal(whole[10 : 10 + height, 10 : 10 + width], canvas)
    words = whole[10 + height : 10 + height + 20, 10 : 10 + width]
    assert 0 < (words < 128).mean() < 0.2
    below = whole[10 + height + 60 :, 10 : 10 + width]  # heat is warm, an image in greys
    assert (below.max(axis=-1).astype(int) - below.min(axis=-1) > 60).mean() > 0.2


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_pictures_are_saved_as_they_are(tmp_path, suffix):
    path = tmp_path / f"panel{suffix}"
    picture = np.tile(np.array([200, 100, 50], np.uint8), (40, 60, 1))
    save_picture(picture, path)
    read = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert abs(read.astype(int) - picture).max() < 6
    with pytest.raises(ValueError, match=r"panel\.gif: pictures are saved as \.png or \.webp"):
        save_picture(picture, tmp_path / "panel.gif")
