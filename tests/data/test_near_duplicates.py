"""Near duplicates in rows and looks: copies go, other pictures of the same hash stay."""

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.generated_pictures import KINDS
from benchmarks.near_duplicates import different, encoded, found, photographs, removed, seen
from pipelines.data.chunk import CANDIDATE_SCHEMA
from pipelines.data.config import DataConfig
from pipelines.data.dedup import index
from pipelines.data.dedup.duplicates import DROP_SCHEMA, drops_path, find_drops
from pipelines.data.dedup.index import INDEX_SCHEMA
from pipelines.data.dedup.looks import as_looks, same_picture
from pipelines.data.dedup.samples import SIDES, write_samples
from pipelines.data.dedup.similar import MOST_SHARING, drop_equal, expand
from pipelines.data.images.look import LOOK_BYTES, make_look
from pipelines.data.paths import ROWS_PER_CHUNK, Layout
from pipelines.data.stats_rows import pair_pictures
from pipelines.data.write import read_table, write_table

# Kinds of which different pictures often have near hashes.
ALIKE = ("quote cards", "a word on white", "logos", "bottles on white", "skies", "flags", "slides")
OTHERS = ("colour cards", "pages in serif", "pie charts", "bar codes", "night", None)


@pytest.mark.parametrize("kind", ALIKE)
def test_different_pictures_of_little_structure_stay(kind):
    made = [seen(encoded(p, quality=92)) for p in different(kind, 30, seed=1)]
    alone, confirmed = removed(made, 2)
    assert confirmed <= 1
    assert alone > confirmed


@pytest.mark.parametrize("kind", [*ALIKE, *OTHERS])
def test_copies_of_a_picture_are_found_as_by_the_hash_alone(kind):
    originals = different(kind, 2, seed=2) if kind else photographs()[::25]
    for how, confirmed in found(originals, 2).items():
        most = {"re-encoded": 0, "resized": 0, "cropped 1%": 1, "cropped 2%": 1}
        assert confirmed.count(False) <= most.get(how, 2), how


def test_a_look_is_small_and_that_of_the_mirror_image_is_the_mirrored_look():
    picture = photographs()[3].resize((500, 375))
    pixels = np.asarray(picture)
    assert len(make_look(pixels, (500, 375))) == LOOK_BYTES <= 256
    flipped = make_look(np.ascontiguousarray(pixels[:, ::-1]), (500, 375))
    looks = as_looks(
        [make_look(pixels, (500, 375), mirrored=True), flipped, seen(encoded(picture))[1]]
    )
    assert same_picture(looks, np.array([0, 0]), np.array([1, 2])).tolist() == [True, False]


def test_grey_and_tiny_pictures_have_a_look():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 200), (64, 64), (1000, 7)):
        grey = rng.integers(0, 256, shape, np.uint8)
        looks = as_looks([make_look(grey, shape[::-1])] * 2)
        assert same_picture(looks, np.array([0]), np.array([1])).all()


def test_a_look_of_an_older_version_is_as_none():
    looks = as_looks([bytes(1032), None, bytes([7]) * 1032])
    assert looks.shape == (3, LOOK_BYTES)
    assert not looks.any()


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, LOOK_BYTES), np.uint8)


def test_of_an_equal_hash_each_picture_keeps_its_row_with_the_longest_captions():
    looks = noise(3)[[0, 1, 0, 2, 0, 1]]
    hashes = np.array([7, 7, 7, 7, 8, 7], np.uint64)
    dropped, kept = drop_equal(hashes, looks, np.array([1, 5, 9, 1, 1, 5]), np.arange(6) + 10)
    assert dict(zip(dropped.tolist(), kept.tolist(), strict=True)) == {10: 12, 15: 11}


def test_a_hundred_thousand_equal_pictures_are_no_work():
    looks = np.broadcast_to(noise(1), (100_000, LOOK_BYTES))
    rows = np.arange(100_000)
    dropped, kept = drop_equal(np.full(100_000, 7, np.uint64), looks, np.ones(100_000), rows)
    assert sorted(dropped.tolist()) == list(range(1, 100_000))
    assert set(kept.tolist()) == {0}


def test_pairs_of_hashes_become_pairs_of_their_rows_and_no_more_than_can_be_compared():
    hashes = np.array([1, 2, 1, 3, 2, *[9] * 3 * MOST_SHARING], np.uint64)
    priority = np.zeros(len(hashes), np.int64)
    one, other = expand(hashes, priority, np.array([1, 3], np.uint64), np.array([2, 9], np.uint64))
    pairs = list(zip(one.tolist(), other.tolist(), strict=True))
    assert sorted(pairs)[:4] == [(0, 1), (0, 4), (2, 1), (2, 4)]
    assert len(pairs) == len(set(pairs)) == 4 + MOST_SHARING


def test_rows_without_a_look_are_compared_with_none_but_each_other():
    looks = as_looks([None, noise(1)[0].tobytes()])
    assert not same_picture(looks, np.array([0]), np.array([1])).any()


def test_rows_of_several_chunks_go_for_the_picture_that_stays(tmp_path, monkeypatch):
    def one_by_one(_, function, items, *__):
        return [(item, function(item)) for item in items]

    monkeypatch.setattr(index, "run_tasks", one_by_one)
    rng = np.random.default_rng(3)
    cards = [KINDS["quote cards"](rng) for _ in range(40)]
    pictures = [*(encoded(card, quality=92) for card in cards)]
    pictures += [encoded(card, quality=60) for card in cards]
    layout = Layout(str(tmp_path))
    for chunk, part in enumerate(np.array_split(np.arange(80), 5)):
        rows = [
            {
                "place": place,
                "key": bytes([n]) * 16,
                "sha256": bytes([n]) * 16,
                "phash": seen(pictures[n])[0],
                "look": seen(pictures[n])[1],
                "characters": 100 - n,
            }
            for place, n in enumerate(part.tolist())
        ][::-1]  # as they were fetched, not in order
        write_table(layout.index(chunk), pa.Table.from_pylist(rows, INDEX_SCHEMA))
    config = DataConfig(
        sources=[{"name": "x", "path": "y"}],
        output=str(tmp_path),
        duplicates={"partition_rows": 30},
    )
    find_drops(config, layout, range(5), [], DROP_SCHEMA.empty_table(), 1)
    drops = read_table(drops_path(layout)).to_pylist()
    assert {drop["reason"] for drop in drops} == {"near_duplicate"}
    gone = {
        drop["row"] // ROWS_PER_CHUNK * 16 + drop["row"] % ROWS_PER_CHUNK: drop for drop in drops
    }
    assert len(set(gone) & set(range(40, 80))) >= 38
    assert len(set(gone) & set(range(40))) <= 1
    kept = {n: bytes.fromhex(drop["detail"].split()[-1])[0] for n, drop in gone.items()}
    assert sum(kept[n] == n - 40 for n in kept if n >= 40) >= 37
    assert not set(kept.values()) & set(gone)


def test_the_page_has_removed_pairs_side_by_side(tmp_path):
    cards = [encoded(KINDS["quote cards"](np.random.default_rng(n)), quality=92) for n in range(3)]
    layout = Layout(str(tmp_path))
    for chunk, card in enumerate(cards):
        row = {"url": f"http://x/{chunk}", "image": card, "phash": chunk, "place": 5}
        write_table(layout.candidate(chunk), pa.Table.from_pylist([row], CANDIDATE_SCHEMA))
    rows = np.arange(3) * ROWS_PER_CHUNK + 5
    held_before = 2**24 * ROWS_PER_CHUNK
    write_samples(layout, (rows, np.array([rows[1], rows[2], held_before])))
    pairs = pair_pictures(str(tmp_path))
    assert [(pair["bits"], pair["removed"]["url"]) for pair in pairs] == [
        (1, "http://x/0"),
        (2, "http://x/1"),
    ]
    assert pairs[0]["kept"]["url"] == "http://x/1"
    assert all(pair[side]["src"].startswith("data:image/jpeg") for pair in pairs for side in SIDES)
    assert pair_pictures(str(tmp_path / "other")) == []
