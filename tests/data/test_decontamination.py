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

hash_values = st.integers(0, 2**64 - 1)


@given(st.lists(hash_values, min_size=1, max_size=30), hash_values, st.integers(0, 63))
def test_the_nearest_is_the_nearest(hashes, stranger, bit):
    names = [f"set/{n}.jpg" for n in range(len(hashes))]
    evaluation = EvaluationHashes.from_hashes(names, hashes)
    for phash in (stranger, hashes[-1] ^ (1 << bit)):
        name, distance = evaluation.nearest(phash)
        assert distance == min((phash ^ known).bit_count() for known in hashes)
        assert (hashes[names.index(name)] ^ phash).bit_count() == distance


def test_within_the_distance_is_contaminated_and_beyond_is_not():
    evaluation = EvaluationHashes.from_hashes(["coco/1.jpg", "coco/2.jpg"], [0, 2**64 - 1])
    assert contaminated(0b1111, evaluation, 4) == "coco/1.jpg (4 bits differ)"
    assert contaminated(0b11111, evaluation, 4) is None
    assert contaminated(2**64 - 1, evaluation, 0) == "coco/2.jpg (0 bits differ)"
    assert contaminated(0, EvaluationHashes.from_hashes([], []), 16) is None


def test_shares_of_a_set_make_the_same_hashes_in_any_order(tmp_path):
    images = {f"set/{n}.png": bytes([n]) for n in range(9)}

    def plain_and_mirrored(data: bytes) -> tuple[int, int]:
        return 2**63 + data[0], 2**62 + data[0]

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
    assert contaminated(2**62 + 3, again, 0) == "set/3.png (0 bits differ)"


def test_an_evaluation_image_that_cannot_be_read_is_named():
    def refuse(data: bytes) -> tuple[int, int]:
        raise DataError(f"{len(data)} bytes cannot be decoded")

    with pytest.raises(DataError, match=r"^set/a\.jpg: 3 bytes cannot be decoded$"):
        evaluation_hashes([("set/a.jpg", b"abc")], refuse)
