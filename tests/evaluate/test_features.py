"""Stored features: whole or not there, the same from a folder and from a bucket."""

import pytest
import torch

from pipelines import storage
from pipelines.evaluate.features import (
    BLOCK_ROWS,
    MANIFEST,
    FeatureWriter,
    features_key,
    open_features,
)

COUNT = 2 * BLOCK_ROWS + 17


def rows():
    torch.manual_seed(0)
    return {"whole": torch.randn(COUNT, 4), "fine": torch.randn(COUNT, 3, 4)}


def write(place, features, batch=100):
    writer = FeatureWriter(place)
    for n in range(0, COUNT, batch):
        writer.add({name: tensor[n : n + batch] for name, tensor in features.items()})
    return writer


def test_rows_come_back_in_order_and_in_blocks(place):
    features = rows()
    write(place, features).finish({"overlaps": torch.arange(8).view(2, 4)})
    stored = open_features(place)
    assert stored.count == COUNT
    assert [first for first, _ in stored.blocks()] == [0, BLOCK_ROWS, 2 * BLOCK_ROWS]
    for name, tensor in stored.all().items():
        assert torch.equal(tensor, features[name])
    assert stored.aside()["overlaps"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_what_was_never_finished_is_not_used_and_is_written_over(place):
    features = rows()
    write(place, features)  # killed before its end
    assert len(storage.list_files(place)) == 2
    assert open_features(place) is None
    write(place, features, batch=31).finish()
    assert torch.equal(open_features(place).all()["fine"], features["fine"])


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest"])
def test_what_is_not_whole_is_not_used(place, damage):
    write(place, rows()).finish()
    name = MANIFEST if damage == "manifest" else storage.list_files(place, ".safetensors")[1]
    path = storage.join(place, name)
    if damage == "gone":
        storage.delete_file(path)
    else:
        storage.write_bytes(path, storage.read_bytes(path)[:-5])
    assert open_features(place) is None


def test_a_key_names_all_that_it_is_made_of():
    parts = {"model": "a", "data": "b", "split": "test", "of": "images"}
    keys = {features_key(**parts | {name: "other"}) for name in parts}
    assert len(keys | {features_key(**parts)}) == 5
    assert features_key(**parts) == features_key(**dict(reversed(parts.items())))
