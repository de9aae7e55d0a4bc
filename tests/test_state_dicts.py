"""State dicts as training loops leave them: what loads, and the one line for what does not."""

import os
import stat
import zipfile

import pytest
import torch
from make_golden import CONFIG
from plain_weights import random_state_dict
from safetensors.torch import load_file, save_file
from tests_support import random_images, tiny_config

import caft
from caft.checkpoint import save_tensors, save_weights, write_manifest
from caft.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def weights():
    return random_state_dict(CONFIG, 1)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_weights(caft.create_model(tiny_config()), tmp_path / "final")
    write_manifest(tmp_path / "final", {})
    return tmp_path / "final"


def mixed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each key with another wrapper's prefix, or with none."""
    prefixes = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "")
    return {prefixes[n % 5] + key: value for n, (key, value) in enumerate(weights.items())}


def compiled_inside(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.replace("visual.", "visual._orig_mod."): value for key, value in weights.items()}


FORMS = {
    "plain": lambda w: w,
    "module.": lambda w: {f"module.{key}": value for key, value in w.items()},
    "_orig_mod.": lambda w: {f"_orig_mod.{key}": value for key, value in w.items()},
    "mixed": mixed,
    "a compiled part": compiled_inside,
    **{
        nest: lambda w, nest=nest: {"epoch": 3, nest: w, "optimizer": {"state": {}}}
        for nest in ("state_dict", "model", "module", "model_state_dict")
    },
    "beside a tensor": lambda w: {"rng_state": torch.zeros(8), "model": mixed(w)},
    "nested twice": lambda w: {"model": {"state_dict": mixed(w)}},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_released_state_dict_loads(form, weights, tmp_path):
    content = FORMS[form](weights)
    expected = weights["image_post.proj"]
    assert torch.equal(caft.from_reference(content, CONFIG).fine_projection, expected)
    for path, zipped in ((tmp_path / "new.pt", True), (tmp_path / "old.pth", False)):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert torch.equal(caft.load_model(path, CONFIG).fine_projection, expected)


def test_our_own_file_with_prefixes_loads(folder, tmp_path):
    images = random_images(1)
    expected = caft.load_model(folder).encode_image(images).whole
    weights = mixed(load_file(folder / "model.safetensors"))
    config = (folder / "config.yaml").read_text()
    save_file(weights, tmp_path / "wrapped.safetensors", {"caft_config": config})
    found = caft.load_model(tmp_path / "wrapped.safetensors").encode_image(images).whole
    assert torch.equal(found, expected)


def test_what_does_not_fit_is_named(weights, folder, tmp_path):
    key = "image_post.proj"
    cases = [
        ({**weights, f"module.{key}": weights[key]}, f"'{key}' is there twice"),
        ({**weights, key: weights[key].to(torch.int8)}, f"'{key}' is int8, not a float"),
        ({**weights, key: weights[key].bool()}, f"'{key}' is bool, not a float"),
        ({**weights, key: weights[key].to_sparse()}, f"'{key}' is no dense tensor"),
        ({**weights, key: torch.zeros(3)}, rf"'{key}' is \(3,\), not"),
        ({**weights, "visual_proj.attn.in_proj_weight": torch.zeros(())}, r"is \(\), not"),
        ({**weights, "extra": torch.zeros(3)}, "surplus 'extra'"),
        ({k: v for k, v in weights.items() if k != key}, f"missing '{key}'"),
    ]
    for content, match in cases:
        with pytest.raises(CheckpointError, match=match) as caught:
            caft.from_reference(content, CONFIG)
        assert "\n" not in str(caught.value)
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=rf"a\.pt: .*{match}"):
            caft.load_model(tmp_path / "a.pt", CONFIG)
    torch.save({**weights, key: torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="larger than what is stored"):
        caft.load_model(tmp_path / "a.pt", CONFIG)
    ours = load_file(folder / "model.safetensors")
    save_file(
        {**ours, "fine_projection": ours["fine_projection"].long()}, folder / "model.safetensors"
    )
    write_manifest(folder, {})
    with pytest.raises(CheckpointError, match="'fine_projection' is int64, not a float"):
        caft.load_model(folder)


def test_a_flipped_bit_is_found_when_a_folder_is_loaded(folder):
    for name in ("model.safetensors", "config.yaml"):
        file = folder / name
        data = file.read_bytes()
        file.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        with pytest.raises(CheckpointError, match=rf"{name}: damaged"):
            caft.load_model(folder)
        file.write_bytes(data)
    caft.load_model(folder)


def test_device_and_dtype(folder):
    model = caft.load_model(folder, device="cpu", dtype=torch.bfloat16)
    assert model.fine_projection.dtype == torch.bfloat16
    assert not model.training
    for arguments, match in (
        ({"device": "gpu"}, "device: 'gpu' cannot be used here"),
        ({"device": "cuda:99"}, "device: 'cuda:99' cannot be used here"),
        ({"dtype": torch.int8}, r"dtype: torch\.int8 is no type of floats"),
        ({"dtype": "bf16"}, "dtype: 'bf16'"),
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            caft.load_model(folder, **arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_weights_have_the_mode_of_other_new_files(umask, tmp_path):
    before = os.umask(umask)
    try:
        save_weights(caft.create_model(tiny_config()), tmp_path / "final")
        save_tensors({"a": torch.zeros(1)}, tmp_path / "final" / "optimizer.safetensors")
        save_tensors({"a": torch.ones(1)}, tmp_path / "final" / "optimizer.safetensors")
        write_manifest(tmp_path / "final", {})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "final").iterdir()}
    assert modes == {0o666 & ~umask}


DEEP = b")" + b"\x85" * 1_000_000  # a tuple in a tuple in a tuple ...
PICKLES = {
    "a key": b"\x80\x02}" + DEEP + b"K\x01s.",
    "a value": b"\x80\x02}K\x01" + DEEP + b"s.",
    "through the memo": b"\x80\x02)" + b"q\x000h\x00\x85" * 100_000 + b".",
    "in a set": b"\x80\x02c__builtin__\nset\n](" + DEEP + b"e\x85R.",
}


@pytest.mark.parametrize("trap", PICKLES)
def test_nested_tuples_in_a_pickle_are_one_line(trap, tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", PICKLES[trap])
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    old = tmp_path / "old.pt"
    torch.save({}, old, _use_new_zipfile_serialization=False)
    head = old.read_bytes().split(b"\x80\x02}")[0]  # up to the third of five pickles
    old.write_bytes(head + PICKLES[trap])
    for file in (path, old):
        with pytest.raises(CheckpointError, match="nested more than 64 deep") as caught:
            caft.load_model(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html>\n<html>",
        b"\x80\x02.",
        b"\x80\x02h\x07.",
        b"\x80\x02(t.",
        b"PK\x03\x04",
    ],
)
def test_what_is_no_pickle_of_weights_is_one_line(data, tmp_path):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.pt: cannot be read") as caught:
        caft.load_model(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_a_compressed_archive_is_refused(tmp_path, weights):
    torch.save(weights, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as plain,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match="is compressed"):
        caft.load_model(tmp_path / "b.pt")
