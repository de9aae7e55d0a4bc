"""What the evaluation loader makes of rows with and without stored superpixels."""

from dataclasses import asdict

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests_support import tiny_config

from caft.config import ImageConfig, SuperpixelConfig
from caft.errors import DataError
from caft.preprocessing import eval_image, squared
from caft.superpixels import superpixel_labels
from caft.superpixels.stored import encode_label_map
from pipelines.data.dataset import DATASET_SCHEMA
from pipelines.evaluate.adapters import PixelPreprocess
from pipelines.evaluate.embed import Preparer
from pipelines.evaluate.opening import DatasetRows
from pipelines.evaluation_input import CAFTPreprocess, Piece
from pipelines.superpixel_columns import unpack_superpixels

LABELS = np.arange(36).reshape(6, 6).repeat(16, 0).repeat(16, 1)


def prepare(folder, stored: list[bytes | None], method: str, rule="squash"):
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    row = {
        "url": "http://a/b.jpg",
        "image": cv2.imencode(".png", picture)[1].tobytes(),
        "captions": [{"source": "a", "kind": "long", "sentences": ["A red dog.", "A cat."]}],
        "split": "test",
    }
    rows = [row | {"superpixels": data} for data in stored]
    table = pa.Table.from_pylist(rows, schema=DATASET_SCHEMA)
    pq.write_table(table, folder / "part-00000.parquet")
    superpixels = SuperpixelConfig(method=method)
    image = tiny_config().image.model_dump() | {"image_size_px": 96, "superpixels": superpixels}
    preprocess = CAFTPreprocess(ImageConfig(**image), rule)
    piece = asdict(Piece("part-00000.parquet", 0, 0))
    columns = {name: [value] for name, value in piece.items()}
    return Preparer(DatasetRows(str(folder), "test"), preprocess)(columns)


def test_stored_maps_are_used_and_missing_ones_left_to_sfcn(tmp_path):
    stored = encode_label_map(LABELS[::2, ::2], 36)  # kept at half the size
    labels = unpack_superpixels(prepare(tmp_path, [stored, None], "sfcn")["superpixels"])
    np.testing.assert_array_equal(labels[0], LABELS)
    assert (labels[1] == -1).all()
    assert unpack_superpixels(prepare(tmp_path, [None, None], "sfcn")["superpixels"]) is None


def test_seeds_are_computed_where_no_map_is_stored(tmp_path):
    stored = encode_label_map(LABELS, 36)
    prepared = prepare(tmp_path, [stored, None], "seeds")
    images = torch.from_numpy(prepared["images"])
    expected = superpixel_labels(images, SuperpixelConfig(method="seeds"))
    np.testing.assert_array_equal(prepared["superpixels"][0], LABELS)
    np.testing.assert_array_equal(prepared["superpixels"][1], expected[1])


def test_a_damaged_map_names_the_image(tmp_path):
    with pytest.raises(DataError, match=r"http://a/b\.jpg: label map of 3 bytes: not one"):
        prepare(tmp_path, [b"abc"], "sfcn")


def test_a_crop_is_given_superpixels_of_its_own_and_not_the_stored_ones(tmp_path):
    stored = encode_label_map(LABELS, 36)
    prepared = prepare(tmp_path, [stored, None], "seeds", "crop")
    images = torch.from_numpy(prepared["images"])
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    assert torch.equal(images[0], eval_image(picture[..., ::-1].copy(), 96, "crop"))
    expected = superpixel_labels(images, SuperpixelConfig(method="seeds"))
    np.testing.assert_array_equal(prepared["superpixels"], expected)
    assert unpack_superpixels(prepare(tmp_path, [stored], "sfcn", "crop")["superpixels"]) is None


def test_other_models_too_are_shown_what_a_benchmark_names():
    picture = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    row = {"url": "a", "image": cv2.imencode(".png", picture[..., ::-1])[1].tobytes()}
    own = PixelPreprocess(lambda pixels: pixels)
    np.testing.assert_array_equal(own([row])["images"][0], picture)
    whole = own.shown_by("squash")([row])["images"][0]
    np.testing.assert_array_equal(whole, squared(picture, 40, "squash"))
    np.testing.assert_array_equal(own.shown_by("crop")([row])["images"][0], picture[:, 10:50])
