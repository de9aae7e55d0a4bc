"""Checkpoint folders: what loads, and the one clear line for each that does not."""

import json
import pickle
import shutil

import pytest
import torch
from tests_support import random_images, tiny_config

import caft
from caft.checkpoint import read_manifest, save_weights, write_manifest
from caft.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_weights(caft.create_model(tiny_config()), tmp_path / "final")
    write_manifest(tmp_path / "final", {"step": 7, "mlflow_run_id": "abc"})
    return tmp_path / "final"


def test_a_folder_and_its_single_file_give_the_same_model(folder):
    images = random_images(1)
    whole = caft.load_model(folder).encode_image(images).whole
    single = caft.load_model(folder / "model.safetensors").encode_image(images).whole
    assert torch.equal(whole, single)
    assert read_manifest(folder, verify=True)["step"] == 7


def test_no_manifest(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"final: no manifest\.json, so this is no finished"):
        caft.load_model(folder)


def test_missing_and_damaged_files_are_named(folder):
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        caft.load_model(folder)
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(folder, verify=True)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing, but the manifest lists it"):
        caft.load_model(folder)


def test_a_configuration_that_does_not_fit_names_the_keys(folder, tmp_path):
    other = tmp_path / "other"
    save_weights(caft.create_model(tiny_config(embed_dim=32)), other)
    shutil.copy(folder / "model.safetensors", other / "model.safetensors")
    write_manifest(other, {})
    with pytest.raises(
        CheckpointError, match=r"does not fit.*is \(16,\) there, \(32,\) in the model"
    ):
        caft.load_model(other)


def test_pickles_and_nothing_are_refused(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    for wrong in (path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="no checkpoint folder"):
            caft.load_model(wrong)


def test_manifest_lists_every_file(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {"model.safetensors", "config.yaml"}
