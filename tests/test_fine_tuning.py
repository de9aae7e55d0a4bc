"""Fine-tuning in plain PyTorch: what is frozen, how fast each layer learns, mixed weights."""

import pytest
import torch
from tests_support import random_images, tiny_config, tiny_controls

import caft
from caft.batch_norm import NormBlocks, batch_statistics, set_norm_blocks
from caft.checkpoint import read_manifest, save_weights, write_manifest
from caft.checkpoint.__main__ import main
from caft.checkpoint.mix import mix
from caft.errors import CheckpointError, ConfigError
from caft.fine_tuning import freeze_, layer_scales, mixed_weights
from caft.model import CAFT


@pytest.fixture
def model():
    torch.manual_seed(0)
    return caft.create_model(tiny_config())


def test_a_frozen_tower_computes_the_same_whatever_the_batch(model):
    frozen = freeze_(model, ["image_encoder.*", "fine_projection"])
    assert all(name.startswith(("image_encoder.", "fine_projection")) for name in frozen)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters()} - set(frozen)
    set_norm_blocks(model, NormBlocks(2))
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    images = random_images(4, seed=0)
    model.eval()
    expected = model.encode_image(images).fine
    model.train()
    # Dropout of the pools is training's own; the stem's norms must not see the batch.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) or type(module).__name__ == "GraphPool":
            module.eval()
    torch.testing.assert_close(model.encode_image(images).fine, expected)
    assert batch_statistics(model).numel() == 0
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, before[name]), name


def test_a_norm_of_which_a_part_learns_still_follows_its_batches(model):
    freeze_(model, ["image_encoder.stem.*.weight"])
    set_norm_blocks(model, NormBlocks(2))
    model.train()
    model.encode_image(random_images(4, seed=0))
    assert batch_statistics(model).numel()


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["image_encoders.*"], r"'image_encoders\.\*' matches no .*mean 'image_encoder\.\*'"),
        (["part_text_encoder.block.0.*"], r"did you mean 'part_text_encoder\.blocks\.0\.\*'"),
        (["visual.*"], r"matches no parameter of the model"),
        (["image_encoder"], r"did you mean 'image_encoder\.\*'"),
        (["*"], r"all \d+ parameters of the model are frozen"),
    ],
)  # fmt: skip
def test_names_that_do_not_serve_are_refused(model, patterns, message):
    with pytest.raises(ConfigError, match=message):
        freeze_(model, patterns)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["caft", *tiny_controls()])
def test_layers_nearer_to_the_input_learn_more_slowly(name):
    config = tiny_config() if name == "caft" else tiny_controls()[name]
    with torch.device("meta"):
        model = CAFT(config)
    scales = layer_scales(model, 0.5)
    assert scales.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(layer_scales(model, 1.0).values()) == {1.0}
    blocks = [n for n in scales if n.endswith("norm1.weight")]
    for tower in ("image_encoder.", "part_text_encoder."):
        own = [scales[n] for n in blocks if n.startswith(tower)]
        assert own == sorted(own)
        assert len(set(own)) == len(own)
        lowest = min(scale for n, scale in scales.items() if n.startswith(tower))
        assert lowest == pytest.approx(min(own) / 2)  # the embeddings
    last_image = max(scales[n] for n in blocks if n.startswith("image_encoder."))
    last_text = max(scales[n] for n in blocks if not n.startswith("image_encoder."))
    assert last_image == last_text == 0.5  # one layer above: the projection
    heads = [s for n, s in scales.items() if "encoder" not in n]
    assert set(heads) == {1.0}


def test_mixed_weights_lie_between_start_and_tuned():
    start = {"a": torch.zeros(3), "n": torch.tensor(5)}
    tuned = {"a": torch.full((3,), 4.0, dtype=torch.bfloat16), "n": torch.tensor(9)}
    mixed = mixed_weights(start, tuned, 0.25)
    assert torch.equal(mixed["a"], torch.full((3,), 3.0))
    assert mixed["n"] == 9
    with pytest.raises(CheckpointError, match=r"n: only the start has it"):
        mixed_weights(start, {"a": tuned["a"]}, 0.5)
    with pytest.raises(CheckpointError, match=r"a: has shapes \(3,\) and \(2,\)"):
        mixed_weights(start, {**tuned, "a": torch.zeros(2)}, 0.5)


def test_a_mixed_checkpoint_keeps_its_training(tmp_path):
    folders = {}
    for seed, name in enumerate(("start", "tuned")):
        torch.manual_seed(seed)
        folders[name] = tmp_path / name
        save_weights(caft.create_model(tiny_config()), folders[name])
        write_manifest(folders[name], {"dataset": f"/{name}", "step": 5})
    out = tmp_path / "mixed"
    arguments = [str(folders["start"]), str(folders["tuned"]), str(out), "--start-share", "0.25"]
    assert main(["mix", *arguments]) == 0
    start, tuned, mixed = (
        caft.load_model(folder).state_dict() for folder in (*folders.values(), out)
    )
    name = "part_projection"
    torch.testing.assert_close(mixed[name], 0.25 * start[name] + 0.75 * tuned[name])
    manifest = read_manifest(out, verify=True)
    assert manifest["dataset"] == "/tuned"
    assert manifest["mixed"]["start_share"] == 0.25
    with pytest.raises(CheckpointError, match=r"mixed: exists and is no empty folder"):
        mix(folders["start"], folders["tuned"], out, 0.5)
    with pytest.raises(ConfigError, match=r"start share 1\.5: must be between 0 and 1"):
        mix(folders["start"], folders["tuned"], tmp_path / "other", 1.5)
    other = tmp_path / "control"
    save_weights(caft.create_model(tiny_controls()["clip_softmax"]), other)
    write_manifest(other, {})
    with pytest.raises(CheckpointError, match=r"start and .*control: .*checkpoints of one model"):
        mix(folders["start"], other, tmp_path / "other", 0.5)
    assert not (tmp_path / "other").exists()
