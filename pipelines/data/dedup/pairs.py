"""Finds rows with the same image: equal digests of bytes, or perceptual hashes that are near.
After the chunks, before the writing; every function is given a share of all rows at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

Pairs = tuple[np.ndarray, np.ndarray]  # two parallel int64 arrays of row ids

# Measured on one core; they only weigh sorting against comparing when bands are chosen.
BAND_S_PER_ROW = 2.5e-7
S_PER_COMPARISON = 1.2e-9
MAX_BANDS = 10_000
# A bit of a perceptual hash splits photographs less evenly than a thrown coin would.
BITS_WORTH = 0.85

WIDE = 256  # rows in a bucket from which on it is compared alone
BLOCK = 2**15  # comparisons at a time: their 8 bytes each stay in a core's cache


def in_partition(digests: np.ndarray, index: int, count: int) -> np.ndarray:
    """Which rows belong to partition `index` of `count`, as `in_partitions` says; bool (N,)."""
    return in_partitions(digests, count) == index


def in_partitions(digests: np.ndarray, count: int) -> np.ndarray:
    """The partition of each row, of `count`; equal digests share theirs.

    Args:
        digests: (N,) of 16 bytes (`V16`), (N, 2) uint64, or (N,) uint64 perceptual hashes.

    Returns:
        (N,) uint64.
    """
    return _mixed(_words(digests)[:, 0]) % np.uint64(count)


def exact_duplicates(digests: np.ndarray, priority: np.ndarray, rows: np.ndarray) -> Pairs:
    """Rows whose digest another row has too. Linear but for one sort.

    Of equal ones the row with the highest priority is kept, the smallest row id among those. With
    perceptual hashes for digests it leaves one row for each value, which `near_pairs` asks for.

    Args:
        digests: as `in_partition` takes them, of one whole partition.
        priority: (N,) integers, such as characters of captions.
        rows: (N,) int64 ids, each once.

    Returns:
        rows that are dropped, and for each the kept row it equals.
    """
    words = _words(digests)
    order = np.argsort(words[:, 0])
    alone = _changes(words[order, :1])
    alone[:-1] &= alone[1:]
    found = order[~alone]
    least_first = (rows[found], -priority[found].astype(np.int64), *words[found].T)
    found = found[np.lexsort(least_first)]
    best = _changes(words[found])
    kept = rows[found[best]][np.cumsum(best) - 1]
    return rows[found[~best]], kept[~best]


def choose_bands(count: int, distance: int) -> tuple[int, ...]:
    """Masks of 64 bits: any two hashes within `distance` agree on all bits of one of them.

    The bits are cut into distance + r fields. Hashes that differ in `distance` bits agree on r
    whole fields at least, so each choice of r fields is a band. More fields make more bands, each
    a pass over all rows, with smaller buckets to compare; the cheapest r for `count` rows is taken.
    All bands of 30 million hashes take, on one core: 23 s at distance 2, 2 minutes at 4, half an
    hour at 8. Beyond, buckets grow: hours at 10, a day at 12, weeks at 16, which is to compare
    nearly all with all.
    """

    def cost_s(shared: int) -> float:
        bits = BITS_WORTH * 64 * shared / (distance + shared)
        comparisons = count / 2**bits / 2  # of one row
        return _band_count(distance, shared) * (BAND_S_PER_ROW + comparisons * S_PER_COMPARISON)

    affordable = (n for n in range(1, 64 - distance) if _band_count(distance, n) <= MAX_BANDS)
    shared = min(affordable, key=cost_s) if distance else 1
    bits = [1 << (37 * n % 64) for n in range(64)]  # neighbours, which are alike, lie apart
    edges = [64 * n // (distance + shared) for n in range(distance + shared + 1)]
    fields = [sum(bits[low:high]) for low, high in itertools.pairwise(edges)]
    return tuple(sum(chosen) for chosen in itertools.combinations(fields, shared))


def in_slice(
    hashes: np.ndarray, bands: tuple[int, ...], band: int, index: int, count: int
) -> np.ndarray:
    """Which of (N,) uint64 hashes belong to slice `index` of `count` of a band; bool (N,).

    Hashes that the band may find to be near share their slice.
    """
    return in_partition(hashes & np.uint64(bands[band]), index, count)


def near_pairs(
    hashes: np.ndarray, rows: np.ndarray, distance: int, bands: tuple[int, ...], band: int
) -> Pairs:
    """Pairs of rows whose hashes differ in 1 .. `distance` bits, as one band finds them.

    A pair comes from the first of `bands` that its hashes agree on, and from no other. Memory is
    some 70 bytes per row and 50 per pair found, whatever the buckets' sizes; 0.4 to 1.2 billion
    comparisons/s on one core.

    Args:
        hashes: (N,) uint64, each value once, of one whole slice of the band.
        rows: (N,) int64 ids.
        bands: `choose_bands` for the rows of all slices.

    Returns:
        the smaller and the larger row id of each pair.

    Raises:
        ValueError: a hash is there twice.
    """
    keys = hashes & np.uint64(bands[band])
    order = np.argsort(keys)
    starts = np.flatnonzero(_changes(keys[order][:, None]))
    sizes = np.diff(np.append(starts, len(keys)))
    hashes, rows = hashes[order], rows[order]  # from here on sorted into buckets
    found = [
        *_in_narrow_buckets(hashes, starts[sizes < WIDE], sizes[sizes < WIDE], distance),
        *_in_wide_buckets(hashes, starts[sizes >= WIDE], sizes[sizes >= WIDE], distance),
    ]
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    one, other = (np.concatenate(side) for side in zip(*found, strict=True))
    differing = hashes[one] ^ hashes[other]
    new = np.ones(len(differing), bool)
    for earlier in bands[:band]:
        new &= differing & np.uint64(earlier) != 0
    one, other = rows[one[new]], rows[other[new]]
    return np.minimum(one, other), np.maximum(one, other)


def drop_near(pairs: Pairs, priority: np.ndarray, rows: np.ndarray) -> Pairs:
    """Rows that go because a row that stays is near, for `near_pairs` of all bands and slices.

    Rows are taken by falling priority, equal ones by rising id; a row goes if a row taken before
    it is near and stays. So no row goes for a row that goes itself, and the order in which pairs
    and rows are given changes nothing.

    Args:
        priority, rows: (N,) each, of all rows that a pair names; others do no harm.

    Returns:
        rows that are dropped, and for each the first kept row that is near.
    """
    named = np.unique(np.concatenate(pairs))
    by_id = np.argsort(rows)
    place = by_id[np.searchsorted(rows, named, sorter=by_id)]
    turn = np.lexsort((named, -priority[place].astype(np.int64)))
    rank = np.empty(len(named), np.int64)
    rank[turn] = np.arange(len(named))
    one, other = (rank[np.searchsorted(named, side)] for side in pairs)
    before, after = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((after, before))
    keeper = np.full(len(named), -1)
    kept_for = keeper.data
    for first, second in zip(before[order].data, after[order].data, strict=True):
        if kept_for[first] < 0 and kept_for[second] < 0:  # all pairs that decide on first are past
            kept_for[second] = first
    dropped = np.flatnonzero(keeper >= 0)
    return named[turn[dropped]], named[turn[keeper[dropped]]]


def in_turn(earlier: Pairs, later: Pairs) -> Pairs:
    """Drops of two passes, the later one over what the earlier one kept, as one list: each row
    names a row that both keep."""
    dropped, kept = later
    order = np.argsort(dropped)
    dropped, kept = dropped[order], kept[order]
    names = earlier[1]
    place = np.searchsorted(dropped, names)
    hit = np.zeros(len(names), bool)
    inside = place < len(dropped)
    hit[inside] = dropped[place[inside]] == names[inside]
    renamed = names.copy()
    renamed[hit] = kept[place[hit]]
    return np.concatenate([earlier[0], dropped]), np.concatenate([renamed, kept])


def _in_narrow_buckets(
    hashes: np.ndarray, starts: np.ndarray, sizes: np.ndarray, distance: int
) -> Iterator[Pairs]:
    """Near pairs, as positions in `hashes`, inside buckets; those of one size side by side."""
    by_size = np.argsort(sizes, kind="stable")
    starts, sizes = starts[by_size], sizes[by_size]
    for size in np.unique(sizes[sizes > 1]).tolist():
        alike = starts[np.searchsorted(sizes, size) : np.searchsorted(sizes, size, "right")]
        for some in np.array_split(alike, math.ceil(len(alike) * size / BLOCK)):
            members = some + np.arange(size)[:, None]  # (size, buckets)
            values = hashes[members]
            for shift in range(1, size):
                near = _near(values[shift:], values[:-shift], distance)
                if near.any():
                    place = np.nonzero(near)
                    yield _distinct(hashes, members[:-shift][place], members[shift:][place])


def _in_wide_buckets(
    hashes: np.ndarray, starts: np.ndarray, sizes: np.ndarray, distance: int
) -> Iterator[Pairs]:
    """Near pairs, as positions in `hashes`, inside buckets that are compared block by block."""
    tall = WIDE // 4
    broad = BLOCK // tall
    for start, end in zip(starts.tolist(), (starts + sizes).tolist(), strict=True):
        for top in range(start, end, tall):
            column = hashes[top : min(top + tall, end), None]
            for left in range(top, end, broad):
                near = _near(column, hashes[left : min(left + broad, end)], distance)
                if left < top + tall:
                    near = np.triu(near, top - left + 1)
                if near.any():
                    one, other = np.nonzero(near)
                    yield _distinct(hashes, one + top, other + left)


def _near(one: np.ndarray, other: np.ndarray, distance: int) -> np.ndarray:
    return np.bitwise_count(one ^ other) <= distance


def _distinct(hashes: np.ndarray, one: np.ndarray, other: np.ndarray) -> Pairs:
    if (hashes[one] == hashes[other]).any():
        raise ValueError("a hash is there twice; keep one row of each with exact_duplicates first")
    return one, other


def _band_count(distance: int, shared: int) -> int:
    return math.comb(distance + shared, shared)


def _words(digests: np.ndarray) -> np.ndarray:
    """Digests as (N, words) uint64."""
    if digests.dtype.kind == "V":
        words = np.ascontiguousarray(digests).view(np.uint64)
        digests = words.reshape(len(digests), digests.itemsize // 8)
    return digests if digests.ndim == 2 else digests[:, None]


def _changes(values: np.ndarray) -> np.ndarray:
    """Where a row of (N, W) is the first or differs from the row before it; bool (N,)."""
    changes = np.ones(len(values), bool)
    changes[1:] = (values[1:] != values[:-1]).any(axis=1)
    return changes


def _mixed(values: np.ndarray) -> np.ndarray:
    """uint64 whose every bit depends on all bits of `values` (the finish of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))
