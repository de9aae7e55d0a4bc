"""Stored label maps: nothing is lost, damage is found, and they are small."""

import base64

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caft.errors import DataError
from caft.superpixels import seeds_labels
from caft.superpixels.stored import (
    LabelMapHeader,
    decode_label_map,
    encode_label_map,
    label_map_header,
)
from pipelines.data.write import ParquetSink
from pipelines.demo.scenes import SceneConfig, render_scene

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)


@settings(max_examples=200)
@given(
    st.sampled_from([2, 5, 300, 60_000]).flatmap(
        lambda top: hnp.arrays(np.int64, SHAPES, elements=st.integers(0, top))
    )
)
def test_any_map_comes_back(labels):
    decoded = decode_label_map(encode_label_map(labels))
    np.testing.assert_array_equal(decoded, labels)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 99))
def test_blocky_maps_of_any_size_come_back(height, width, seed):
    coarse = np.random.default_rng(seed).integers(0, 50, (-(-height // 7), -(-width // 7)))
    labels = coarse.repeat(7, 0).repeat(7, 1)[:height, :width]
    data = encode_label_map(labels, 50)
    assert label_map_header(data) == LabelMapHeader(height, width, 50)
    np.testing.assert_array_equal(decode_label_map(data), labels)


def test_maps_of_seeds_take_a_sixth_of_their_pixels_in_a_dataset(tmp_path):
    scenes = [render_scene(n, SceneConfig()).image.repeat(2, 0).repeat(2, 1) for n in range(20)]
    maps = [seeds_labels(scene[:192, :192], 144, 20) for scene in scenes]
    schema = pa.schema({"superpixels": pa.binary()})
    with ParquetSink(str(tmp_path / "maps.parquet"), schema, 20) as sink:
        for labels in maps:
            sink.add({"superpixels": encode_label_map(labels)})
    stored = pq.read_table(tmp_path / "maps.parquet")["superpixels"].to_pylist()
    for data, labels in zip(stored, maps, strict=True):
        np.testing.assert_array_equal(decode_label_map(data), labels)
    assert sink.entry["bytes"] < sum(labels.size for labels in maps) / 6


# Written by the version before, which coded the borders between superpixels.
OLDER = [
    (
        "U1BYMdi2H+kYACgAEACwAAAAG68A+J8HdqxlWkLs+INwsLJ4+Ofe3febgyZFa4AsLc18YsfLIgxLLLIa5K6vVlOgdI"
        "XJkBLamqivAgCBrQ2oVZOQzZYytYiIWg0AwP+fbePugXWjngboz3qt8NZfAAAQt53z+fkr7Td4tQxaevL5Y5PbyeEk"
        "/YVmU6xmAA==",
        np.minimum(
            np.arange(24)[:, None] // 8 * 5 + (np.arange(40) + np.arange(24)[:, None] % 3) // 9, 14
        ),
        16,
    ),
    (
        "U1BYMXPrln0GAAYAkAFaAAAAG1kA+C+KBwAAADhBRdHpYTxxdY4flnI98ifBJWsAG61DlSCRfmw/iQuM7Rindy2+8m"
        "KDDg4HAmdwtk0i85KcoIKCXw==",
        np.arange(36).reshape(6, 6) * 9,
        400,
    ),
]


@pytest.mark.parametrize(("text", "labels", "count"), OLDER)
def test_maps_of_older_datasets_are_read(text, labels, count):
    data = base64.b64decode(text)
    assert label_map_header(data) == LabelMapHeader(*labels.shape, count)
    np.testing.assert_array_equal(decode_label_map(data), labels)
    for place in range(len(data)):
        bad = data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]
        with pytest.raises(DataError, match="label map of"):
            decode_label_map(bad)


@given(st.data())
def test_any_damage_is_found(data):
    labels = np.arange(36).reshape(6, 6).repeat(4, 0).repeat(4, 1)
    good = encode_label_map(labels)
    kind = data.draw(st.sampled_from(["flip", "cut", "append"]))
    if kind == "flip":
        place = data.draw(st.integers(0, len(good) - 1))
        changed = good[place] ^ data.draw(st.integers(1, 255))
        bad = good[:place] + bytes([changed]) + good[place + 1 :]
    elif kind == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        bad = good + b"\0"
    with pytest.raises(DataError, match="label map of"):
        decode_label_map(bad)


@pytest.mark.parametrize(
    ("labels", "count", "said"),
    [
        (np.zeros((2, 2, 2), int), None, r"integers \(H, W\) are due"),
        (np.zeros((0, 2), int), None, r"shape \(0, 2\)"),
        (np.zeros((2, 2)), None, "float64"),
        (np.full((2, 2), -1), None, r"labels -1 \.\. -1 do not fit"),
        (np.full((2, 2), 7), 7, r"labels 7 \.\. 7 do not fit 7 superpixels"),
        (np.full((2, 2), 70_000), None, "do not fit 70001"),
        (np.zeros((1, 3000), int), None, "3000 x 1 px"),
    ],
)
def test_what_is_no_label_map_is_refused(labels, count, said):
    with pytest.raises(DataError, match=said):
        encode_label_map(labels, count)
