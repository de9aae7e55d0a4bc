"""Controls that begin with the towers of CLIP or SigLIP: equal to transformers' own numbers."""

import pytest
import torch
import torchvision_operators  # noqa: F401  (before transformers)
import yaml
from safetensors.torch import save_file

import caft
from caft.checkpoint.__main__ import main
from caft.checkpoint.clip_keys import openai_key
from caft.checkpoint.towers import CLASS, POSITIONS, write_towers
from caft.errors import CheckpointError, ConfigError
from caft.transforms import normalise

SIDE, PATCH, WIDTH, EMBED, HEADS, LAYERS = 48, 16, 64, 32, 4, 2
VOCABULARY, CONTEXT = 49408, 77
SIZES = {
    "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path) -> str:
    config = {
        "name": "tiny_clip",
        "embed_dim": EMBED,
        "image": {
            "encoder": "flat", "image_size_px": SIDE, "patch_px": PATCH, "width": WIDTH,
            "heads": HEADS, "depth": LAYERS, "preprocess": "crop",
        },
        "text": {"width": WIDTH, "heads": HEADS, "layers": LAYERS, "whole": "mean", "chunks": 1},
        "losses": {"parts": False, "whole": "softmax"},
    }  # fmt: skip
    path = tmp_path / "tiny_clip.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def clip_of_transformers(side: int = SIDE):
    import transformers

    torch.manual_seed(0)
    vision = {**SIZES, "image_size": side, "patch_size": PATCH}
    text = {**SIZES, "vocab_size": VOCABULARY, "eos_token_id": VOCABULARY - 1}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED)
    return transformers.CLIPModel(config).eval()


def test_clip_keeps_its_numbers(recipe, tmp_path, capsys):
    theirs = clip_of_transformers()
    save_file(
        {k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "clip.safetensors"
    )
    file, folder = str(tmp_path / "clip.safetensors"), str(tmp_path / "ours")
    assert main(["towers", file, folder, "--model", recipe]) == 0
    assert "begin at random: none" in capsys.readouterr().out
    model = caft.load_model(folder)
    assert model.config.activation == "quick_gelu"
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    texts = ["a red barn", "two people walk on the beach at night", "snow"]
    ids = model.tokenize(texts)
    with torch.no_grad():
        out = theirs(pixel_values=normalise(pixels), input_ids=ids)
        image, text = model.encode_image(pixels).whole, model.encode_text(ids[:, None]).whole
        logits = model.whole_scores(model.encode_image(pixels), model.encode_text(ids[:, None]))
    unit = torch.nn.functional.normalize
    # The epsilons of the image tower's norms differ: 1e-6 here, 1e-5 there.
    torch.testing.assert_close(unit(image, dim=-1), out.image_embeds, atol=2e-4, rtol=0)
    torch.testing.assert_close(unit(text, dim=-1), out.text_embeds, atol=2e-4, rtol=0)
    torch.testing.assert_close(logits, out.logits_per_image, atol=2e-3, rtol=0)


def test_openai_s_own_keys_are_read_too(recipe, tmp_path):
    source = caft.create_model(recipe).eval()
    state = source.state_dict()
    special = ("image_encoder.cls_token", "image_encoder.positions")
    towers = ("image_encoder.", "part_text_encoder.")
    file = {openai_key(n): v for n, v in state.items() if n.startswith(towers) and n not in special}
    width = state["image_encoder.positions"].shape[-1]
    positions = state["image_encoder.positions"].reshape(-1, width)
    file[CLASS] = state["image_encoder.cls_token"].flatten() - 1.0
    file[POSITIONS] = torch.cat([torch.ones(1, width), positions])
    file |= {"visual.proj": state["coarse_projection"], "logit_scale": torch.tensor(2.0)}
    file["text_projection"] = state["whole_projection"]
    torch.save({"state_dict": {f"module.{k}": v for k, v in file.items()}}, tmp_path / "clip.pt")
    model, fresh = write_towers(tmp_path / "clip.pt", tmp_path / "ours", recipe)
    assert fresh == []
    assert model.whole_log_scale.item() == 2.0
    for name, value in model.state_dict().items():
        if name != "whole_log_scale":
            torch.testing.assert_close(value, state[name], msg=name)


def test_positions_of_another_picture_size_are_resized(recipe, tmp_path):
    weights = {k: v.contiguous() for k, v in clip_of_transformers(side=64).state_dict().items()}
    save_file(weights, tmp_path / "large.safetensors")
    model, _ = write_towers(tmp_path / "large.safetensors", tmp_path / "ours", recipe)
    assert model.image_encoder.positions.shape == (SIDE // PATCH, SIDE // PATCH, WIDTH)


def test_siglip_gives_the_image_tower_s_patches_and_blocks(recipe, tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(**SIZES, image_size=SIDE, patch_size=PATCH)
    theirs = transformers.SiglipVisionModel(config).eval()
    weights = {
        k if k.startswith("vision_model.") else f"vision_model.{k}": v.contiguous()
        for k, v in theirs.state_dict().items()
    }
    save_file(weights, tmp_path / "siglip.safetensors")
    model, fresh = write_towers(tmp_path / "siglip.safetensors", tmp_path / "ours", recipe)
    assert model.config.activation == "gelu_tanh"
    assert {"image_encoder.cls_token", "image_encoder.norm_in.weight"} <= {*fresh}
    assert not [name for name in fresh if name.startswith("image_encoder.blocks.")]
    assert "part_text_encoder.token_embedding.weight" in fresh
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    vision = getattr(theirs, "vision_model", theirs)
    encoder = model.image_encoder
    with torch.no_grad():
        expected = vision.embeddings(pixels.float() / 127.5 - 1)
        patches = encoder.patch_embedding(normalise(pixels)).permute(0, 2, 3, 1)
        own = (patches + encoder.positions).flatten(1, 2)
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)
        after = vision.post_layernorm(vision.encoder(inputs_embeds=expected).last_hidden_state)
        torch.testing.assert_close(encoder.norm(encoder.blocks(own)), after, atol=1e-4, rtol=1e-4)


def test_what_has_no_such_towers_is_one_line(recipe, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>")
    cases = [
        ("other.safetensors", recipe, "other.safetensors: has no image tower under the keys of"),
        ("page.safetensors", recipe, "page.safetensors: damaged, or no safetensors"),
        ("none.pt", recipe, "none.pt: no such file"),
    ]  # fmt: skip
    for name, asked, message in cases:
        with pytest.raises(CheckpointError, match=message):
            write_towers(tmp_path / name, tmp_path / "ours", asked)
    weights = {k: v.contiguous() for k, v in clip_of_transformers().state_dict().items()}
    save_file(weights, tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match=r"'visual.positional_embedding' is \(9, 64\)"):
        write_towers(tmp_path / "small.safetensors", tmp_path / "ours", "clip_b16")
    with pytest.raises(ConfigError, match="caft_xs: has no flat image encoder; name clip_b16"):
        write_towers(tmp_path / "small.safetensors", tmp_path / "ours", "caft_xs")
    assert not (tmp_path / "ours").exists()
