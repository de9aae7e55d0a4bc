"""Duplicates against brute force, however the rows are cut into shares and ordered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.dedup.pairs import (
    choose_bands,
    drop_near,
    exact_duplicates,
    in_partition,
    in_slice,
    in_turn,
    near_pairs,
)

seeds = st.integers(0, 2**32 - 1)


def joined(parts) -> tuple[np.ndarray, np.ndarray]:
    one, other = zip(*parts, strict=True)
    return np.concatenate(one).astype(np.int64), np.concatenate(other).astype(np.int64)


def as_dict(pairs) -> dict[int, int]:
    result = dict(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))
    assert len(result) == len(pairs[0]), "a row is dropped twice"
    return result


def equal_rows(digests, priority, rows, partitions=1):
    shares = [in_partition(digests, index, partitions) for index in range(partitions)]
    return joined(exact_duplicates(digests[s], priority[s], rows[s]) for s in shares)


def near_rows(hashes, priority, rows, distance, partitions=1, slices=1, expected_rows=1000):
    """All three steps, as the data stage takes them: equal hashes, near pairs, drops."""
    equal = equal_rows(hashes, priority, rows, partitions)
    left = ~np.isin(rows, equal[0])
    hashes, priority, rows = hashes[left], priority[left], rows[left]
    bands = choose_bands(expected_rows, distance)
    found = []
    for band in range(len(bands)):
        for index in range(slices):
            some = in_slice(hashes, bands, band, index, slices)
            found.append(near_pairs(hashes[some], rows[some], distance, bands, band))
    return in_turn(equal, drop_near(joined(found), priority, rows))


def brute_force(hashes, priority, rows, distance) -> dict[int, int]:
    kept: list[int] = []
    dropped = {}
    for n in np.lexsort((rows, -priority)):
        near = [m for m in kept if int(hashes[n] ^ hashes[m]).bit_count() <= distance]
        if near:
            dropped[int(rows[n])] = int(rows[near[0]])
        else:
            kept.append(n)
    return dropped


def near_hashes(rng, count, distance) -> np.ndarray:
    """Hashes around few centres, so that chains, equal ones and strangers are all there."""
    hashes = rng.integers(0, 2**64, 4, dtype=np.uint64)[rng.integers(0, 4, count)]
    for _ in range(distance + 1):
        bits = np.uint64(1) << rng.integers(0, 12, count).astype(np.uint64) * np.uint64(5)
        hashes = np.where(rng.random(count) < 0.5, hashes ^ bits, hashes)
    return hashes


@given(seeds, st.integers(0, 60), st.sampled_from([1, 2, 7]))
def test_of_equal_digests_the_longest_captions_stay(seed, count, partitions):
    rng = np.random.default_rng(seed)
    digests = rng.integers(0, 3, (count, 2), dtype=np.uint64)  # halves collide on their own too
    priority, rows = rng.integers(0, 4, count), rng.permutation(count) + 100
    expected = {}
    for n in range(count):
        same = np.flatnonzero((digests == digests[n]).all(axis=1))
        best = min(same, key=lambda m: (-priority[m], rows[m]))
        if best != n:
            expected[int(rows[n])] = int(rows[best])
    assert as_dict(equal_rows(digests, priority, rows, partitions)) == expected
    as_bytes = digests.view("V16").reshape(count)
    assert as_dict(equal_rows(as_bytes, priority, rows, partitions)) == expected


@settings(max_examples=60)
@given(
    seed=seeds,
    count=st.integers(0, 80),
    distance=st.integers(0, 9),
    slices=st.sampled_from([1, 3]),
    expected_rows=st.sampled_from([10, 10**6]),
)
def test_near_ones_go_as_if_taken_one_by_one(seed, count, distance, slices, expected_rows):
    rng = np.random.default_rng(seed)
    hashes = near_hashes(rng, count, distance)
    priority, rows = rng.integers(0, 5, count), rng.permutation(count) * 10**9
    expected = brute_force(hashes, priority, rows, distance)
    found = near_rows(hashes, priority, rows, distance, 2, slices, expected_rows)
    assert as_dict(found) == expected
    turn = rng.permutation(count)
    assert as_dict(near_rows(hashes[turn], priority[turn], rows[turn], distance)) == expected


@given(seeds, st.integers(1, 16), st.sampled_from([100, 10**7, 10**9]))
def test_some_band_holds_any_two_hashes_within_the_distance(seed, distance, count):
    flipped = np.random.default_rng(seed).permutation(64)[:distance]
    differing = sum(1 << int(bit) for bit in flipped)
    assert any(differing & band == 0 for band in choose_bands(count, distance))


@pytest.mark.parametrize("size", [255, 256, 700, 2500])
def test_every_pair_of_a_crowded_bucket_is_found_once(size):
    rng = np.random.default_rng(size)
    bands = choose_bands(1000, 2)
    in_first_band = [1 << bit for bit in range(64) if bands[0] >> bit & 1][:12]
    bits = rng.permutation(2**12)[:size, None] >> np.arange(12) & 1
    hashes = bits.astype(np.uint64) @ np.array(in_first_band, np.uint64)  # other bands: one bucket
    rows = np.arange(size)
    one, other = joined(near_pairs(hashes, rows, 2, bands, band) for band in range(len(bands)))
    differing = np.bitwise_count(hashes[:, None] ^ hashes)
    expected = np.argwhere(np.triu((differing >= 1) & (differing <= 2))).tolist()
    assert sorted(zip(one.tolist(), other.tolist(), strict=True)) == [tuple(p) for p in expected]


def test_a_hundred_thousand_equal_hashes_are_no_work():
    hashes = np.full(100_000, 7, np.uint64)
    hashes[-1] = 6
    priority, rows = np.ones(100_000, np.int64), np.arange(100_000)
    dropped, kept = near_rows(hashes, priority, rows, 2, partitions=3, slices=2)
    assert sorted(dropped.tolist()) == list(range(1, 100_000))
    assert set(kept.tolist()) == {0}


def test_a_chain_is_cut_where_a_kept_row_is_too_far():
    hashes = np.array([0b0, 0b11, 0b1111, 0b111111], np.uint64)
    rows, priority = np.arange(4), np.array([9, 8, 7, 6])
    assert as_dict(near_rows(hashes, priority, rows, 2)) == {1: 0, 3: 2}


def test_equal_hashes_are_refused_where_they_would_explode():
    with pytest.raises(ValueError, match="there twice"):
        near_pairs(np.full(500, 7, np.uint64), np.arange(500), 2, choose_bands(500, 2), 0)
