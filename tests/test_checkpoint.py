"""Checkpoint folders and released files: what loads, and the one clear line for what does not."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from make_golden import CONFIG, changed, random_inputs
from plain_caft import PlainCAFT
from plain_weights import random_state_dict
from safetensors.torch import load_file, save_file
from tests_support import random_images, tiny_config

import caft
from caft.checkpoint import convert, read_manifest, save_weights, write_manifest
from caft.checkpoint.__main__ import main
from caft.checkpoint.export import export
from caft.errors import CheckpointError, ConfigError
from caft.superpixels import superpixel_labels
from caft.superpixels.network import SFCN
from caft.transforms import normalise

SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden"
NETWORK_PREFIX = "visual.superpixel_generator."
# What a file does not tell is as in CAFT-B; everything else is small.
SMALL_CAFT_B = changed(
    vision_cfg={
        "image_size": 144,
        "depth": [3, 3, 3, 2],
        "num_heads": 12,
        "num_clusters": [64, 32, 16],
    },
    text_cfg={"heads": 8},
    text_coarse_cfg={"heads": 8, "layers": 2, "context_length": 3},
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_weights(caft.create_model(tiny_config()), tmp_path / "final")
    write_manifest(tmp_path / "final", {"step": 7, "mlflow_run_id": "abc"})
    return tmp_path / "final"


@pytest.fixture
def released(tmp_path):
    """A small released file as training wrote it, and the weights in it."""
    weights = random_state_dict(SMALL_CAFT_B, 2) | network_weights()
    write_released(tmp_path / "CAFT-small.pt", weights)
    return tmp_path / "CAFT-small.pt", weights


def network_weights() -> dict[str, torch.Tensor]:
    """A random superpixel network, with the heads that only training used."""
    torch.manual_seed(2)
    network = {NETWORK_PREFIX + name: value for name, value in SFCN().state_dict().items()}
    for head, width in ((1, 32), (2, 64), (3, 128)):
        network[f"{NETWORK_PREFIX}pred_mask{head}.weight"] = torch.zeros(9, width, 3, 3)
        network[f"{NETWORK_PREFIX}pred_mask{head}.bias"] = torch.zeros(9)
    return network


def write_released(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """As a data-parallel training run saves it: prefixed, nested, beside optimiser state."""
    name, weight = next(iter(weights.items()))
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(weight)}}}
    content = {
        "epoch": 32,
        "name": name,
        "state_dict": {f"module.{key}": value for key, value in weights.items()},
        "optimizer": optimizer | {"param_groups": [{"lr": 5e-4, "betas": (0.9, 0.98)}]},
    }
    torch.save(content, path)


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


def test_other_files_and_nothing_are_refused(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    for wrong in (path, tmp_path / "nowhere", tmp_path / "nowhere.pt"):
        with pytest.raises(CheckpointError, match="no checkpoint folder"):
            caft.load_model(wrong)


def test_no_bit_of_a_manifest_changes_unnoticed(folder):
    """Each flip is refused, or leaves what the manifest says as it was."""
    file = folder / "manifest.json"
    data, known = file.read_bytes(), read_manifest(folder)
    chance = random.Random(20260)
    for place in chance.sample(range(8 * len(data)), 300):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        try:
            found = read_manifest(folder)
        except CheckpointError:
            continue
        for key in known.keys() - {"manifest_sha256"}:
            assert found[key] == known[key], place


def test_a_manifest_of_an_older_version_is_read(folder):
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["manifest_sha256"]
    file.write_text(json.dumps(manifest))
    assert read_manifest(folder) == manifest


def test_manifest_lists_every_file(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {"model.safetensors", "config.yaml"}


def test_a_released_file_loads_without_further_options(released):
    path, weights = released
    model = caft.load_model(path)
    assert model.config.name == "CAFT-small"
    assert not model.training
    inputs = random_inputs(SMALL_CAFT_B, 2, 4, 12, 3)
    plain = PlainCAFT(without_network(weights), SMALL_CAFT_B)
    images = plain.encode_image(normalise(inputs["images_uint8"]), inputs["superpixels"])
    texts = plain.encode_text(inputs["tokens"].long())
    ours = model(inputs["images_uint8"], inputs["tokens"].long(), inputs["superpixels"])
    torch.testing.assert_close(ours[0].whole, images["whole_image"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[0].fine, images["fine"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[1].whole, texts["whole_text"], rtol=1e-4, atol=1e-4)


def test_a_released_file_brings_its_superpixel_network_and_the_reference_s_quirks(released):
    path, weights = released
    model = caft.load_model(path)
    assert not model.config.mask_dead_superpixels
    assert model.config.image.superpixels.unnormalise_with == "imagenet"
    for name, value in model.superpixel_network.state_dict().items():
        assert torch.equal(value, weights[NETWORK_PREFIX + name])
    without = caft.from_reference(without_network(weights), SMALL_CAFT_B)
    assert without.config.image.superpixels.method == "seeds"


@pytest.mark.skipif(not SHARED.exists(), reason="reference numbers are not here")
def test_its_superpixels_are_the_reference_s():
    network = load_file(SHARED / "sfcn" / "weights_float16.safetensors")
    weights = random_state_dict(SMALL_CAFT_B, 1)
    weights |= {NETWORK_PREFIX + key: value for key, value in network.items()}
    model = caft.from_reference(weights, SMALL_CAFT_B)
    case = load_file(SHARED / "sfcn" / "case.safetensors")
    (images,) = (value for value in case.values() if value.dim() == 4 and value.shape[1] == 3)
    labels = superpixel_labels(images, model.config.image.superpixels, model.superpixel_network)
    assert torch.equal(labels, case["labels"].long())


@pytest.mark.skipif(not SHARED.exists(), reason="released key names are not here")
def test_a_file_with_the_released_keys_of_caft_b_loads(tmp_path):
    shapes = json.loads((SHARED / "state_dict_caft_b.json").read_text())
    weights = {
        key: torch.rand(shape).to(getattr(torch, dtype)) for key, (shape, dtype) in shapes.items()
    }
    write_released(tmp_path / "CAFT-30M.pt", weights)
    model = caft.load_model(tmp_path / "CAFT-30M.pt")
    published = caft.config.load_model_config("caft_b")
    assert model.config.text == published.text.model_copy(update={"sentences": "reference"})
    assert model.config.image.model_copy(update={"superpixels": None}) == (
        published.image.model_copy(update={"superpixels": None})
    )
    assert sum(p.numel() for p in model.parameters()) == 169_219_513
    assert torch.equal(
        model.image_encoder.groups[3][1].contract.weight, weights["visual.blocks.10.mlp.fc2.weight"]
    )
    packed = weights["visual_proj.attn.in_proj_weight"]
    assert torch.equal(model.attention_pool.to_v.weight, packed[1024:])


def test_weights_at_the_top_of_the_file_load_too(tmp_path):
    weights = random_state_dict(CONFIG, 1)
    torch.save({**weights, "epoch": 3}, tmp_path / "flat.pth")
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("flat.pth", "old.pt"):
        model = caft.load_model(tmp_path / name, CONFIG)
        assert torch.equal(model.fine_projection, weights["image_post.proj"])


def test_missing_surplus_and_misshapen_keys_of_a_file_are_all_named(tmp_path):
    weights = random_state_dict(SMALL_CAFT_B, 1)
    weights["visual.norm.weight"] = torch.zeros(7)
    weights["text_post.proj"] = weights["text_post.proj"].flatten()
    for key in ("visual.cls_token", "image_post.proj", "visual.pools.1.pool_block.fc2.1.bias"):
        del weights[key]
    weights |= {f"head.{n}": torch.zeros(1) for n in range(5)}
    write_released(tmp_path / "odd.pt", weights)
    with pytest.raises(CheckpointError) as caught:
        caft.load_model(tmp_path / "odd.pt", SMALL_CAFT_B)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'odd.pt'}: released weights do not fit: ")
    assert "'visual.norm.weight' is (7,), not (24,)" in message
    assert "'text_post.proj' is (256,), not (16, 16)" in message
    assert message.count("missing '") == 3
    assert "missing 'visual.pools.1.pool_block.fc2.1.bias'" in message
    assert message.count("surplus 'head.") == 5


def test_a_missing_key_is_named_also_where_sizes_are_read_from_it(tmp_path):
    weights = random_state_dict(SMALL_CAFT_B, 1)
    del weights["positional_embedding"]
    write_released(tmp_path / "odd.pt", weights)
    with pytest.raises(CheckpointError, match="missing 'positional_embedding'"):
        caft.load_model(tmp_path / "odd.pt")


def test_another_model_s_file_says_so(tmp_path):
    write_released(tmp_path / "fixture.pt", random_state_dict(CONFIG, 1))
    with pytest.raises(CheckpointError, match=r"fixture\.pt: 4 blocks.*give the configuration"):
        caft.load_model(tmp_path / "fixture.pt")
    torch.save({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"no weights of CAFT.*'visual\.conv1\.weight'"):
        caft.load_model(tmp_path / "clip.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match="holds no weights"):
        caft.load_model(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg": {"global_pool": "avg"}}, "vision_cfg.global_pool: must be 'cls'"),
        ({"vision_cfg": {"num_heads": 7}}, "heads 7 does not divide width 24"),
        ({"text_cfg": {"width": "wide"}}, "text.width"),
    ],
)
def test_a_configuration_the_model_cannot_take_names_the_field(changes, message):
    with pytest.raises(ConfigError, match=message):
        caft.from_reference({}, changed(**changes))


def test_a_released_configuration_without_a_field_names_it():
    config = changed()
    del config["vision_cfg"]["depth"]
    with pytest.raises(ConfigError, match="no field 'depth'"):
        caft.from_reference({}, config)


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path, new_format):
    content = {"state_dict": random_state_dict(CONFIG, 1), "args": Malicious(tmp_path / "made")}
    path = tmp_path / "evil.pt"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError) as caught:
        caft.load_model(path)
    assert f"{path}: refused, as reading it would call posix.mkdir" in str(caught.value)
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "made")))
    with pytest.raises(CheckpointError, match=r"evil\.pt: "):
        caft.load_model(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kept", [0, 10, 5000, -10])
def test_a_damaged_file_is_one_line(released, kept):
    path, _ = released
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"CAFT-small\.pt: cannot be read") as caught:
        caft.load_model(path)
    assert "\n" not in str(caught.value)


def test_a_converted_file_gives_the_same_numbers(released, tmp_path, capsys):
    path, _ = released
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    assert "CAFT-small, 0." in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out", verify=True)
    assert manifest["converted_from"]["name"] == "CAFT-small.pt"
    before, after = caft.load_model(path), caft.load_model(tmp_path / "out")
    assert before.config == after.config
    inputs = random_inputs(SMALL_CAFT_B, 2, 4, 12, 3)
    images, tokens = inputs["images_uint8"], inputs["tokens"].long()
    for model_input in (None, inputs["superpixels"]):  # None: by the superpixel network
        scores = [model.score(*model(images, tokens, model_input)) for model in (before, after)]
        assert torch.equal(*scores)


def test_conversion_takes_a_configuration_and_refuses_to_overwrite(tmp_path, capsys):
    path, config, out = (tmp_path / name for name in ("fixture.pt", "config.json", "out"))
    weights = random_state_dict(CONFIG, 1)
    write_released(path, weights)
    config.write_text(json.dumps(CONFIG))
    assert main(["convert", str(path), str(out), "--config", str(config)]) == 0
    assert torch.equal(caft.load_model(out).fine_projection, weights["image_post.proj"])
    before = sorted(out.iterdir())
    for arguments, message in (
        ([str(path), str(out)], "out: exists and is no empty folder"),
        ([str(path), str(path)], "fixture.pt: exists and is no empty folder"),
        ([str(path), str(tmp_path / "new")], "give the configuration"),
        ([str(path), str(tmp_path / "new"), "--config", str(path)], "fixture.pt: cannot be read"),
        ([str(path), str(path / "below"), "--config", str(config)], "below: cannot be written"),
        ([str(out), str(tmp_path / "new"), "--config", str(config)], "has its own configuration"),
        ([str(tmp_path / "no.pt"), str(tmp_path / "new")], "no checkpoint folder"),
    ):
        assert main(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert sorted(out.iterdir()) == before
    assert not (tmp_path / "new").exists()


def test_a_folder_converts_too(folder, tmp_path):
    convert(folder, tmp_path / "copy")
    images = random_images(1)
    copies = [caft.load_model(f).encode_image(images).whole for f in (folder, tmp_path / "copy")]
    assert torch.equal(*copies)


def test_the_command_line_explains_itself():
    for arguments, words in (([], "convert"), (["convert"], "CAFT-30M.pt")):
        command = [sys.executable, "-m", "caft.checkpoint", *arguments, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert words in done.stdout
        assert done.stderr == ""


def without_network(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if not key.startswith(NETWORK_PREFIX)}


def without_key(folder: Path, **manifest) -> Path:
    """A folder as it was written before there was `image.preprocess`."""
    file = folder / "config.yaml"
    file.write_text("".join(x for x in file.open() if "preprocess:" not in x))
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"caft_config": file.read_text()})
    write_manifest(folder, manifest)
    return folder


def preprocess_of(path: Path) -> str:
    return caft.load_model(path).config.image.preprocess


def test_released_files_are_shown_the_crop_and_so_is_what_was_converted_from_them(
    released, tmp_path
):
    path, _ = released
    assert preprocess_of(path) == "crop"
    convert(path, tmp_path / "converted")
    assert preprocess_of(tmp_path / "converted") == "crop"
    known = read_manifest(tmp_path / "converted")["converted_from"]
    old = without_key(tmp_path / "converted", converted_from=known)
    assert preprocess_of(old) == "crop"
    assert preprocess_of(old / "model.safetensors") == "crop"
    shutil.copy(old / "model.safetensors", tmp_path / "alone.safetensors")
    assert preprocess_of(tmp_path / "alone.safetensors") == "crop"
    export(old, tmp_path / "twice")
    again = without_key(tmp_path / "twice", exported_from="converted")
    assert preprocess_of(again) == "crop"
    assert preprocess_of(without_key(again, exported_from="CAFT-small.pt")) == "crop"


def test_runs_of_ours_from_before_the_key_squashed_pictures(folder, tmp_path):
    old = without_key(folder, step=7)
    assert preprocess_of(old) == preprocess_of(old / "model.safetensors") == "squash"
    convert(old, tmp_path / "converted")
    assert preprocess_of(without_key(tmp_path / "converted", converted_from={"name": "final"})) == (
        "squash"
    )
    kept = tiny_config(mask_dead_superpixels=False)  # of a run that was trained with the quirk
    save_weights(caft.create_model(kept), tmp_path / "quirk")
    assert preprocess_of(without_key(tmp_path / "quirk", step=7)) == "squash"
    cropped = tiny_config(image=tiny_config().image.model_copy(update={"preprocess": "crop"}))
    save_weights(caft.create_model(cropped), tmp_path / "cropped")
    write_manifest(tmp_path / "cropped", {"step": 7})
    assert preprocess_of(tmp_path / "cropped") == "crop"
