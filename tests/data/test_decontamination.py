"""The nearest evaluation image against brute force, and the hashes' way through files."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caft.errors import DataError
from pipelines.data.dedup.decontamination import EvaluationHashes, contaminated, evaluation_hashes
from pipelines.data.images.look import LOOK_BYTES

hash_values = st.integers(0, 2**64 - 1)


def a_look(value: int) -> bytes:
    """Of a picture of noise, equal for equal values and else another picture."""
    return np.random.default_rng(value).integers(0, 256, LOOK_BYTES, np.uint8).tobytes()


def seen(*hashes: int) -> list[tuple[int, bytes]]:
    return [(phash, a_look(0)) for phash in hashes]


@given(st.lists(hash_values, min_size=1, max_size=30), hash_values, st.integers(0, 63))
def test_the_nearest_is_the_nearest(hashes, stranger, bit):
    names = [f"set/{n}.jpg" for n in range(len(hashes))]
    evaluation = EvaluationHashes.from_seen(names, seen(*hashes))
    for phash in (stranger, hashes[-1] ^ (1 << bit)):
        name, distance = evaluation.nearest((phash, a_look(0)), 64)
        assert distance == min((phash ^ known).bit_count() for known in hashes)
        assert (hashes[names.index(name)] ^ phash).bit_count() == distance


def test_within_the_distance_is_contaminated_and_beyond_is_not():
    evaluation = EvaluationHashes.from_seen(["coco/1.jpg", "coco/2.jpg"], seen(0, 2**64 - 1))
    look = a_look(0)
    assert contaminated(0b1111, look, evaluation, 4) == "coco/1.jpg (4 bits differ)"
    assert contaminated(0b11111, look, evaluation, 4) is None
    assert contaminated(2**64 - 1, look, evaluation, 0) == "coco/2.jpg (0 bits differ)"
    assert contaminated(0, look, EvaluationHashes.from_seen([], []), 16) is None


def test_a_near_hash_of_another_picture_is_no_contamination():
    names = ["coco/near.jpg", "coco/same.jpg"]
    evaluation = EvaluationHashes.from_seen(names, [(0, a_look(1)), (0b111, a_look(2))])
    assert contaminated(0, a_look(3), evaluation, 4) is None
    assert contaminated(0, a_look(2), evaluation, 4) == "coco/same.jpg (3 bits differ)"


def test_shares_of_a_set_make_the_same_hashes_in_any_order(tmp_path):
    images = {f"set/{n}.png": bytes([n]) for n in range(9)}

    def plain_and_mirrored(data: bytes) -> list[tuple[int, bytes]]:
        return [(2**63 + data[0], a_look(data[0])), (2**62 + data[0], a_look(100 + data[0]))]

    whole = evaluation_hashes(images.items(), plain_and_mirrored)
    shares = [evaluation_hashes([item], plain_and_mirrored) for item in images.items()]
    shares += [evaluation_hashes([], plain_and_mirrored), shares[0]]
    joined = pa.concat_tables([share.to_table() for share in reversed(shares)])
    pq.write_table(joined, tmp_path / "hashes.parquet")
    stored = EvaluationHashes.from_table(pq.read_table(tmp_path / "hashes.parquet"))
    assert stored.to_table() == whole.to_table()
    assert len(whole.hashes) == 18
    again = pickle.loads(pickle.dumps(stored))
    np.testing.assert_array_equal(again.hashes, whole.hashes)
    assert contaminated(2**62 + 3, a_look(103), again, 0) == "set/3.png (0 bits differ)"


def test_an_evaluation_image_that_cannot_be_read_is_named():
    def refuse(data: bytes) -> list[tuple[int, bytes]]:
        raise DataError(f"{len(data)} bytes cannot be decoded")

    with pytest.raises(DataError, match=r"^set/a\.jpg: 3 bytes cannot be decoded$"):
        evaluation_hashes([("set/a.jpg", b"abc")], refuse)
