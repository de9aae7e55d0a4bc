"""The superpixel network: reference numbers, frozen for real, in and out of checkpoints."""

import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests_support import random_images, tiny_config

import caft
from caft.checkpoint import save_weights, write_manifest
from caft.config import ImageConfig, SuperpixelConfig
from caft.errors import CheckpointError, ConfigError
from caft.superpixels import superpixel_labels
from caft.superpixels.network import NEIGHBOURS, SFCN, decode_labels, load_sfcn_weights

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "sfcn"
needs_reference = pytest.mark.skipif(not GOLDEN.exists(), reason="reference numbers are not here")


@pytest.fixture(scope="module")
def case():
    network = SFCN(frozen=True)
    weights = load_file(GOLDEN / "weights_float16.safetensors")
    load_sfcn_weights(network, weights, "reference")
    return network, load_file(GOLDEN / "case.safetensors")


def sfcn_config(weights: str, **changes):
    """A tiny model on 96-px images: 36 superpixels of 16 px."""
    superpixels = SuperpixelConfig(method="sfcn", weights=weights)
    image = tiny_config().image.model_dump() | {"image_size_px": 96, "superpixels": superpixels}
    return tiny_config(image=ImageConfig(**image), **changes)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> str:
    """Random weights whose batch statistics differ from those of any image."""
    torch.manual_seed(0)
    network = SFCN().train()
    network(torch.randn(2, 3, 32, 32) * 3 + 1)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(network.state_dict(), path)
    return str(path)


@needs_reference
def test_probabilities_and_labels_are_the_reference_s(case):
    """The reference un-normalises with ImageNet's statistics, whatever the input was."""
    network, reference = case
    seen = []
    network.register_forward_hook(lambda module, args, output: seen.append(output))
    config = SuperpixelConfig(method="sfcn", unnormalise_with="imagenet")
    labels = superpixel_labels(reference["images"], config, network)
    assert (seen[0] - reference["probabilities"]).abs().max() < 1e-4
    assert torch.equal(labels, reference["labels"].long())


def test_the_image_is_un_normalised_with_the_statistics_it_was_normalised_with():
    """Unless asked for the reference's slip, SFCN sees the RGB of the photograph."""
    seen = []
    network = SFCN(frozen=True)
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = random_images(1, 32)
    for choice in ("clip", "imagenet"):
        config = SuperpixelConfig(method="sfcn", unnormalise_with=choice)
        superpixel_labels(images, config, network)
    rgb = images / 255 - torch.tensor([0.411, 0.432, 0.45]).view(3, 1, 1)
    torch.testing.assert_close(seen[0], rgb)
    assert (seen[1] - rgb).abs().max() > 0.01


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_a_label_is_the_likeliest_of_the_nine_cells_around(rows, columns, seed):
    probabilities = torch.rand(
        1, NEIGHBOURS, 16 * rows, 16 * columns, generator=torch.Generator().manual_seed(seed)
    )
    labels = decode_labels(probabilities)[0]
    for y, x in ((0, 0), (15, 15), (16 * rows - 1, 16 * columns - 1), (8 * rows, 8 * columns)):
        choice = int(probabilities[0, :, y, x].argmax())
        row = min(max(y // 16 + choice // 3 - 1, 0), rows - 1)
        column = min(max(x // 16 + choice % 3 - 1, 0), columns - 1)
        assert labels[y, x] == row * columns + column


def test_training_leaves_the_network_as_it_is(weights_file):
    model = caft.create_model(sfcn_config(weights_file))
    images = random_images(2, 96)
    before = {name: value.clone() for name, value in model.superpixel_network.state_dict().items()}
    cut = model.eval().encode_image(images).superpixels
    model.train()
    for module in model.modules():
        module.train()
    features = model.encode_image(images)
    assert torch.equal(features.superpixels, cut)
    alone = model.encode_image(images[:1]).superpixels
    assert torch.equal(alone, cut[:1])
    features.whole.sum().backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    optimizer.step()
    for name, value in model.superpixel_network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_network_is_no_parameter_but_part_of_the_checkpoint(weights_file, tmp_path):
    config = sfcn_config(weights_file)
    model = caft.create_model(config)
    assert not [name for name, _ in model.named_parameters() if "superpixel_network" in name]
    plain = caft.create_model(tiny_config())
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(p.numel() for p in plain.parameters())
    assert "superpixel_network.conv0a.0.weight" in model.state_dict()


def test_a_checkpoint_brings_its_own_superpixels(weights_file, tmp_path):
    copy = tmp_path / "weights.safetensors"
    copy.write_bytes(Path(weights_file).read_bytes())
    model = caft.create_model(sfcn_config(str(copy))).eval()
    save_weights(model, tmp_path / "final")
    write_manifest(tmp_path / "final", {})
    copy.unlink()
    images = random_images(3, 96)
    expected = model.encode_image(images)
    loaded = caft.load_model(tmp_path / "final").encode_image(images)
    assert torch.equal(loaded.superpixels, expected.superpixels)
    assert torch.equal(loaded.whole, expected.whole)


def test_superpixels_do_not_depend_on_precision_around_them(weights_file):
    model = caft.create_model(sfcn_config(weights_file)).eval()
    images = random_images(2, 96)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.encode_image(images).superpixels
    assert torch.equal(mixed, model.encode_image(images).superpixels)


def test_caft_b_keeps_its_number_of_trained_parameters():
    model = caft.create_model("caft_b")
    assert model.superpixel_network is not None
    assert sum(p.numel() for p in model.parameters()) == 169_219_513


@needs_reference
def test_auxiliary_heads_are_left_out_and_nothing_else_is():
    weights = load_file(GOLDEN / "weights_float16.safetensors")
    network = SFCN(frozen=True)
    load_sfcn_weights(network, weights, "reference")
    assert not [name for name in network.state_dict() if "pred_mask1" in name]
    with pytest.raises(CheckpointError, match=r"reference: .*surplus 'pred_mask9\.weight'"):
        load_sfcn_weights(network, weights | {"pred_mask9.weight": torch.zeros(1)}, "reference")


def test_weights_that_are_not_there_or_no_weights(tmp_path):
    with pytest.raises(ConfigError, match=r"superpixels\.weights: 'nowhere' is no file and not"):
        caft.create_model(sfcn_config("nowhere"))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"half of it")
    with pytest.raises(ConfigError, match=r"damaged\.safetensors: cannot be read"):
        caft.create_model(sfcn_config(str(damaged)))
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(CheckpointError, match=r"other\.safetensors: no weights of a superpixel"):
        caft.create_model(sfcn_config(str(other)))


def save_published(path: Path, state: dict, legacy: bool = False) -> str:
    """A file as the published training leaves it, in either of PyTorch's formats."""
    content = {
        "epoch": 1, "arch": "SpixelNet1l_bn", "state_dict": state, "best_EPE": 0.5,
        "optimizer": {"state": {}, "param_groups": [{"lr": 5e-5}]}, "dataset": "BSD500",
    }  # fmt: skip
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return str(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_published_file_is_read_as_it_is(weights_file, tmp_path, prefix, legacy):
    ours = load_file(weights_file)
    state = {prefix + name: value for name, value in ours.items()}
    for n in (1, 2, 3):
        state[f"{prefix}pred_mask{n}.weight"] = torch.zeros(9, 16, 3, 3)
    path = save_published(tmp_path / "SpixelNet_bsd_ckpt.tar", state, legacy)
    images = random_images(2, 96)
    model = caft.create_model(sfcn_config(path))
    for name, value in model.superpixel_network.state_dict().items():
        assert torch.equal(value, ours[name]), name
    as_safetensors = caft.create_model(sfcn_config(weights_file))
    assert torch.equal(model.superpixel_labels(images), as_safetensors.superpixel_labels(images))


class Runs:
    def __reduce__(self):
        return print, ("this ran",)


def test_other_files_than_the_published_one_are_refused_in_a_line(weights_file, tmp_path, capsys):
    ours = load_file(weights_file)
    good = Path(save_published(tmp_path / "good.tar", ours)).read_bytes()
    (tmp_path / "page.tar").write_text("<!DOCTYPE html><html><body>Quota exceeded</body></html>")
    (tmp_path / "half.tar").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "archive.tar", "w") as archive:
        archive.add(weights_file, "weights.safetensors")
    torch.save({"state_dict": ours, "extra": Runs()}, tmp_path / "program.tar")
    save_published(tmp_path / "shapes.tar", ours | {"pred_mask0.weight": torch.zeros(9, 8, 3, 3)})
    integers = {name: value.int() for name, value in ours.items()}
    save_published(tmp_path / "integers.tar", integers)
    save_published(tmp_path / "other.tar", {"layer.weight": torch.zeros(2)})
    save_published(tmp_path / "nothing.tar", {})
    for name, reason in {
        "page": "cannot be read as a PyTorch file",
        "half": "cannot be read as a PyTorch file",
        "empty": "cannot be read as a PyTorch file",
        "archive": "cannot be read as a PyTorch file",
        "program": "would call",
        "shapes": r"'pred_mask0.weight' is \(9, 8, 3, 3\), not \(9, 16, 3, 3\)",
        "integers": "is int32, not a float",
        "other": "no weights of a superpixel network",
        "nothing": "no weights",
    }.items():
        with pytest.raises((ConfigError, CheckpointError), match=reason) as caught:
            caft.create_model(sfcn_config(str(tmp_path / f"{name}.tar")))
        assert f"{name}.tar" in str(caught.value)
        assert "superpixels.weights" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_cells_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="method 'sfcn' makes cells of 16 px"):
        caft.create_model({"image": {"superpixels": {"method": "sfcn", "cell_px": 8}}})
