"""What the training loader makes of rows with and without stored superpixels."""

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
from caft.superpixels import superpixel_labels
from caft.superpixels.stored import encode_label_map
from pipelines.data.dataset import CAPTIONS, DATASET_SCHEMA, Dataset, FileEntry
from pipelines.train.config import IngestConfig, SubsetConfig
from pipelines.train.ingest import _collate, index_row_groups
from pipelines.train.loader import Loader, caption_lists, read_rows
from pipelines.train.plan import Piece, Window, open_subset

LABELS = np.arange(36).reshape(6, 6).repeat(10, 0).repeat(10, 1)
COLOURS = np.random.default_rng(0).integers(0, 256, (36, 3), dtype=np.uint8)
INGEST = IngestConfig(crop_min_scale=0.5, extra_parts=0)


def model_config(method: str):
    superpixels = SuperpixelConfig(method=method)
    image = tiny_config().image.model_dump() | {"image_size_px": 96, "superpixels": superpixels}
    return tiny_config(image=ImageConfig(**image))


def load(
    folder,
    stored: list[bytes | None],
    method: str,
    ingest: IngestConfig = INGEST,
    shown: np.ndarray = LABELS,
):
    """The loader's arrays for rows whose picture shows `shown` in colours."""
    image = cv2.imencode(".png", COLOURS[shown][..., ::-1])[1].tobytes()
    captions = [{"source": "a", "kind": "long", "sentences": ["A red dog.", "A cat."]}]
    rows = [
        {"key": str(n), "image": image, "captions": captions, "superpixels": s, "split": "train"}
        for n, s in enumerate(stored)
    ]
    table = pa.Table.from_pylist(rows, schema=DATASET_SCHEMA)
    pq.write_table(table, folder / "part-00000.parquet")
    pieces = (Piece("part-00000.parquet", 0, 0, len(rows)),)
    window = Window(0, 0, 1, 0, pieces, (0, 0, 0, 0))
    return Loader(str(folder), "train", model_config(method), ingest)(asdict(window))


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("method", ["sfcn", "seeds"])
def test_stored_maps_are_cropped_and_flipped_with_their_images(tmp_path, method, flip):
    ingest = INGEST.model_copy(update={"flip_probability": flip})
    arrays = load(tmp_path, [encode_label_map(LABELS, 36)] * 4, method, ingest)
    for image, labels in zip(arrays["images"], arrays["superpixels"], strict=True):
        pixels = image.transpose(1, 2, 0)[:, :, None].astype(int)
        nearest = np.abs(pixels - COLOURS).sum(axis=-1).argmin(axis=-1)
        assert (nearest == labels).mean() > 0.9
    leftmost = arrays["superpixels"][0][:, 0].min() % 6
    assert leftmost >= 3 if flip else leftmost < 3


def test_a_picture_that_the_published_crop_cuts_far_is_given_superpixels_of_its_own(tmp_path):
    """The map is of the whole picture, of which a crop of 4:3 shows two thirds."""
    long = np.arange(36).reshape(6, 6).repeat(10, 0).repeat(20, 1)
    stored = [encode_label_map(LABELS, 36)]
    ingest = IngestConfig(extra_parts=0)
    assert (load(tmp_path, stored, "sfcn", ingest)["superpixels"] >= 0).all()
    arrays = load(tmp_path, stored, "sfcn", ingest, long)
    assert (arrays["superpixels"] == -1).all()
    arrays = load(tmp_path, stored, "seeds", ingest, long)
    expected = superpixel_labels(
        torch.from_numpy(arrays["images"]), SuperpixelConfig(method="seeds")
    )
    np.testing.assert_array_equal(arrays["superpixels"], expected)


def test_squares_stay_squares_whatever_is_stored(tmp_path):
    bands = np.arange(36).repeat(100).reshape(60, 60)
    arrays = load(tmp_path, [encode_label_map(bands, 36)], "grid")
    images = torch.from_numpy(arrays["images"])
    squares = superpixel_labels(images, SuperpixelConfig(method="grid"))
    np.testing.assert_array_equal(arrays["superpixels"], squares)


def test_without_maps_seeds_run_in_the_loader_and_sfcn_in_the_model(tmp_path):
    arrays = load(tmp_path, [None, None], "seeds")
    images = torch.from_numpy(arrays["images"])
    expected = superpixel_labels(images, SuperpixelConfig(method="seeds"))
    np.testing.assert_array_equal(arrays["superpixels"], expected)
    left = load(tmp_path, [None, None], "sfcn")
    assert _collate([left, left], slice(0, 1)).superpixels is None
    mixed = load(tmp_path, [encode_label_map(LABELS, 36)] * 2, "sfcn")
    batch = _collate([left, mixed], slice(0, 1))
    assert batch.superpixels.shape == (2, 96, 96)
    assert (batch.superpixels[0] == -1).all()
    assert (batch.superpixels[1] >= 0).all()


def test_a_map_of_another_model_names_the_row(tmp_path):
    with pytest.raises(DataError, match=r"key 0: stored superpixels: the map has 9 of them.* 36"):
        load(tmp_path, [encode_label_map(LABELS % 9)], "seeds")
    damaged = encode_label_map(LABELS, 36)[:-1]
    with pytest.raises(DataError, match=r"key 0: label map of .* bytes: damaged"):
        load(tmp_path, [damaged], "seeds")


def test_an_image_that_cannot_be_decoded_names_the_row(tmp_path):
    broken = {"key": "a7", "image": b"\xff\xd8\xff", "captions": [], "split": "train"}
    table = pa.Table.from_pylist([broken], schema=DATASET_SCHEMA)
    pq.write_table(table, tmp_path / "part-00000.parquet")
    window = Window(0, 0, 1, 0, (Piece("part-00000.parquet", 0, 0, 1),), (0, 0, 0, 0))
    with pytest.raises(DataError, match="key a7: image of 3 bytes cannot be decoded"):
        Loader(str(tmp_path), "train", model_config("grid"), INGEST)(asdict(window))


def test_a_sample_depends_on_its_key_and_epoch_alone(tmp_path):
    """Not on the window that it is in, nor on its neighbours."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "key": f"key{n}",
            "image": cv2.imencode(".png", rng.integers(0, 256, (99, 120, 3), np.uint8))[
                1
            ].tobytes(),
            "captions": [{"source": "a", "kind": "long", "sentences": list("abcdefgh")}],
            "split": "train" if n % 3 else "test",
        }
        for n in range(20)
    ]
    table = pa.Table.from_pylist(rows, schema=DATASET_SCHEMA)
    pq.write_table(table, tmp_path / "part-00000.parquet", row_group_size=8)
    loader = Loader(str(tmp_path), "train", model_config("grid"), INGEST)

    def samples(epoch: int, seed: int, *pieces: tuple[int, int, int]) -> set[tuple[bytes, bytes]]:
        named = tuple(Piece("part-00000.parquet", *piece) for piece in pieces)
        arrays = loader(asdict(Window(epoch, 0, 1, 0, named, (0, 0, 0, seed))))
        pairs = zip(arrays["images"], arrays["tokens"], strict=True)
        return {(image.tobytes(), tokens.tobytes()) for image, tokens in pairs}

    whole = samples(0, 0, (0, 0, 5), (1, 0, 5), (2, 0, 3))
    assert len(whole) == 13
    assert samples(0, 1, (1, 1, 4)) | samples(0, 2, (2, 0, 3), (1, 0, 1)) < whole
    assert not samples(1, 0, (0, 0, 5)) & whole


def test_subsets_are_nested_exact_and_the_same_everywhere(tmp_path):
    """However rows lie in files and row groups, and whoever reads them."""
    rows = [
        {"key": f"key{n}", "image": b"", "captions": [], "split": "train" if n % 4 else "test"}
        for n in range(120)
    ]
    rng = np.random.default_rng(0)
    before: dict[int, set[str]] = {}
    for attempt in ("one", "other"):
        folder, entries = tmp_path / attempt, []
        folder.mkdir()
        for n, share in enumerate(
            np.array_split(rng.permutation(120), 1 if attempt == "one" else 3)
        ):
            table = pa.Table.from_pylist([rows[i] for i in share], schema=DATASET_SCHEMA)
            pq.write_table(table, folder / f"part-{n}.parquet", row_group_size=7 + n)
            entries.append(FileEntry(f"part-{n}.parquet", len(share), 0, ""))
        dataset = Dataset(str(folder), {}, tuple(entries), ())
        smaller: set[str] = set()
        for count in (1, 10, 45, 90):
            subset = open_subset(dataset, "train", SubsetConfig(rows=count, seed=3))
            groups = index_row_groups(dataset, "train", subset=subset)
            assert sum(group.rows for group in groups) == count
            pieces = [Piece(group.file, group.index, 0, group.rows) for group in groups]
            keys = read_rows(str(folder), pieces, "train", subset).keys
            assert len(set(keys)) == len(keys) == count
            assert smaller < set(keys)
            assert before.setdefault(count, set(keys)) == set(keys)
            smaller = set(keys)
        other_seed = open_subset(dataset, "train", SubsetConfig(rows=10))
        assert other_seed != open_subset(dataset, "train", SubsetConfig(rows=10, seed=3))
        with pytest.raises(DataError, match=r"has 90 rows, fewer than subset\.rows 91"):
            open_subset(dataset, "train", SubsetConfig(rows=91))


def test_captions_read_as_arrow_reads_them():
    text = {"source": "a", "kind": "long", "sentences": ["one", "two"]}
    short = {"source": "b", "kind": "raw", "sentences": ["three"]}
    rows = [[text, short], [], [short], [{**text, "sentences": []}, text]]
    column = pa.array(rows, CAPTIONS)
    wanted = [[{k: c[k] for k in ("kind", "sentences")} for c in captions] for captions in rows]
    assert caption_lists(column) == wanted
    assert caption_lists(column.slice(1, 2)) == wanted[1:3]
    assert caption_lists(column.slice(0, 0)) == []


def test_a_missing_or_odd_column_is_named_with_its_file(tmp_path):
    row = {"key": "a", "image": b"", "captions": [], "superpixels": None, "split": "train"}
    whole = pa.Table.from_pylist([row], schema=DATASET_SCHEMA)
    dataset = Dataset(str(tmp_path), {}, (FileEntry("part-00000.parquet", 1, 0, ""),), ())

    def index(table: pa.Table):
        pq.write_table(table, tmp_path / "part-00000.parquet")
        return index_row_groups(dataset, "train")

    assert index(whole) == index(whole.drop_columns(["superpixels"]))
    for name in ("key", "image", "captions", "split"):
        with pytest.raises(DataError, match=rf"part-00000\.parquet: no column '{name}'"):
            index(whole.drop_columns([name]))
    numbers = whole.set_column(0, "key", pa.array([7]))
    with pytest.raises(DataError, match="column 'key' is int64, due is string"):
        index(numbers)


def test_batches_know_their_keys_in_the_order_of_their_images(tmp_path):
    arrays = load(tmp_path, [None] * 6, "grid")
    assert sorted(arrays["keys"]) == list("012345")
    other = {name: values[::-1] for name, values in arrays.items()}
    batch = _collate([arrays, other], slice(1, 3))
    assert batch.keys == (*arrays["keys"][1:3], *other["keys"][1:3])
