"""Released files of other models: loaded by their keys, and equal to a plain forward pass."""

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision_operators  # noqa: F401  (before transformers)
from safetensors.torch import save_file

from caft.errors import CheckpointError, ConfigError
from caft.preprocessing import eval_image
from caft.tokenizer import load_tokenizer
from caft.transforms import normalise
from pipelines.evaluate.adapters import open_adapter

WIDTH, TEXT_WIDTH, EMBED, LAYERS, PATCH, GRID = 128, 64, 64, 2, 16, 3
VOCABULARY = 49408
TEXTS = ["A red barn. It has two doors; the sky is grey.", "Snow", "a boat at sea " * 120]


def _shapes(context: int) -> dict[str, tuple[int, ...]]:
    """Of what FLAIR's and Long-CLIP's files share: both encoders' keys are OpenAI CLIP's."""
    shapes = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (GRID**2 + 1, WIDTH),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "positional_embedding": (context, TEXT_WIDTH),
        "token_embedding.weight": (VOCABULARY, TEXT_WIDTH),
        "logit_scale": (),
    }
    for prefix, width in (("visual.", WIDTH), ("", TEXT_WIDTH)):
        for layer in range(LAYERS):
            block = f"{prefix}transformer.resblocks.{layer}."
            shapes |= {f"{block}ln_{n}.{kind}": (width,) for n in (1, 2) for kind in NORM}
            shapes |= _linear(f"{block}attn.in_proj_", width, 3 * width)
            shapes |= _linear(f"{block}attn.out_proj.", width, width)
            shapes |= _linear(f"{block}mlp.c_fc.", width, 4 * width)
            shapes |= _linear(f"{block}mlp.c_proj.", 4 * width, width)
    for name, width in (("visual.ln_pre", WIDTH), ("visual.ln_post", WIDTH)):
        shapes |= {f"{name}.{kind}": (width,) for kind in NORM}
    return shapes | {f"ln_final.{kind}": (TEXT_WIDTH,) for kind in NORM}


NORM = ("weight", "bias")


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}weight": (outputs, inputs), f"{name}bias": (outputs,)}


def _random(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: 0.2 * torch.randn(shape) for key, shape in shapes.items()}


def flair_weights() -> dict[str, torch.Tensor]:
    shapes = _shapes(77) | {"logit_bias": ()}
    shapes |= {"image_post.proj": (WIDTH, EMBED), "text_post.proj": (TEXT_WIDTH, EMBED)}
    shapes |= _linear("visual_proj.attn.in_proj_", EMBED, 3 * EMBED)
    shapes |= _linear("visual_proj.attn.out_proj.", EMBED, EMBED)
    shapes |= {f"visual_proj.ln_{n}.{kind}": (EMBED,) for n in "qkv" for kind in NORM}
    return _random(shapes)


def long_clip_weights() -> dict[str, torch.Tensor]:
    shapes = _shapes(248) | {"positional_embedding_res": (248, TEXT_WIDTH)}
    return _random(shapes | {"visual.proj": (WIDTH, EMBED), "text_projection": (TEXT_WIDTH, EMBED)})


def norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def attend(w, name, q, k, v, heads, mask=None, zero=False):
    """PyTorch's own multi-head attention, the plainest reading of the published files."""
    return F.multi_head_attention_forward(
        *(x.transpose(0, 1) for x in (q, k, v)),
        q.shape[-1],
        heads,
        w[f"{name}.in_proj_weight"],
        w[f"{name}.in_proj_bias"],
        None,
        None,
        zero,
        0.0,
        w[f"{name}.out_proj.weight"],
        w[f"{name}.out_proj.bias"],
        training=False,
        need_weights=False,
        attn_mask=mask,
    )[0].transpose(0, 1)


def blocks(w, prefix, x, gelu, mask=None):
    for layer in range(LAYERS):
        name = f"{prefix}transformer.resblocks.{layer}"
        seen = norm(w, f"{name}.ln_1", x)
        x = x + attend(w, f"{name}.attn", seen, seen, seen, x.shape[-1] // 64, mask)
        hidden = norm(w, f"{name}.ln_2", x)
        hidden = F.linear(hidden, w[f"{name}.mlp.c_fc.weight"], w[f"{name}.mlp.c_fc.bias"])
        x = x + F.linear(gelu(hidden), w[f"{name}.mlp.c_proj.weight"], w[f"{name}.mlp.c_proj.bias"])
    return x


def image_tokens(w, pixels, gelu):
    x = F.conv2d(pixels, w["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = norm(w, "visual.ln_pre", x + w["visual.positional_embedding"])
    return norm(w, "visual.ln_post", blocks(w, "visual.", x, gelu))


def text_ends(w, texts, positions, gelu):
    tokens = load_tokenizer("clip")(texts, len(positions))
    tokens = F.pad(
        tokens, (0, len(positions) - tokens.shape[1])
    )  # to the full length, as CLIP does
    mask = torch.full((len(positions), len(positions)), -torch.inf).triu(1)
    x = norm(
        w, "ln_final", blocks(w, "", w["token_embedding.weight"][tokens] + positions, gelu, mask)
    )
    return x[torch.arange(len(x)), tokens.argmax(dim=-1)]


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


@pytest.fixture
def pictures():
    drawn = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    encoded = [cv2.imencode(".png", picture)[1].tobytes() for picture in drawn]
    made = [{"url": f"{n}.png", "image": data} for n, data in enumerate(encoded)]
    seen = [eval_image(row["image"], GRID * PATCH, "crop") for row in made]
    return made, normalise(torch.stack(seen))


def scores_of(adapter, rows, captions):
    with torch.inference_mode():
        images = adapter.encode_images(adapter.preprocess()(rows))
        texts = adapter.encode_texts(captions)
        scorer = adapter.scorer()
        (name,) = scorer.components
        return scorer.tile(scorer.prepare_images(images), scorer.prepare_texts(texts), [name])[name]


@pytest.mark.parametrize("nested", [False, True])
def test_flair_s_file_is_scored_by_its_text_conditioned_pooling(tmp_path, pictures, nested):
    w = flair_weights()
    file = {f"module.{key}": value for key, value in w.items()} if nested else w
    torch.save({"epoch": 1, "state_dict": file} if nested else file, tmp_path / "flair-x.pt")
    adapter = open_adapter(str(tmp_path / "flair-x.pt"))
    assert (adapter.name, adapter.sentences) == ("flair-x", None)
    made, pixels = pictures
    patches = image_tokens(w, pixels, F.gelu)[:, 1:] @ w["image_post.proj"]
    texts = text_ends(w, TEXTS, w["positional_embedding"], F.gelu) @ w["text_post.proj"]
    queries, keys, values = (
        norm(w, f"visual_proj.ln_{name}", x)
        for name, x in (("q", texts.expand(len(patches), -1, -1)), ("k", patches), ("v", patches))
    )
    pooled = attend(w, "visual_proj.attn", queries, keys, values, 8, zero=True)
    cosine = F.cosine_similarity(pooled, texts[None], dim=-1)
    expected = w["logit_scale"].exp() * cosine + w["logit_bias"]
    ours = scores_of(adapter, made, [[text] for text in TEXTS])
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_long_clip_s_file_reads_248_positions_from_two_tables(tmp_path, pictures, dtype):
    stored = {key: value.to(dtype) for key, value in long_clip_weights().items()}
    torch.save(stored, tmp_path / "longclip-B.pt")
    adapter = open_adapter(str(tmp_path / "longclip-B.pt"))
    assert (adapter.name, adapter.sentences) == ("longclip-B", None)
    w = {key: value.float() for key, value in stored.items()}
    made, pixels = pictures
    images = image_tokens(w, pixels, quick_gelu)[:, 0] @ w["visual.proj"]
    late = (torch.arange(248) >= 20)[:, None].float()
    positions = w["positional_embedding"] * (1 - late) + w["positional_embedding_res"] * late
    texts = text_ends(w, TEXTS, positions, quick_gelu) @ w["text_projection"]
    expected = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    ours = scores_of(adapter, made, [[text] for text in TEXTS])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [flair_weights, long_clip_weights])
def test_missing_surplus_and_misshapen_keys_are_named(tmp_path, make):
    w = make()
    del w["visual.ln_pre.bias"]
    w |= {"mask_net.weight": torch.zeros(3), "ln_final.bias": torch.zeros(TEXT_WIDTH + 1)}
    torch.save(w, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt.*missing 'visual\.ln_pre\.bias'") as caught:
        open_adapter(str(tmp_path / "x.pt"))
    assert "surplus 'mask_net.weight'" in str(caught.value)
    assert "'ln_final.bias' is (65,)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_weights_is_one_line(tmp_path, suffix):
    save_file({"a": torch.ones(1000)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for content in (b"<!DOCTYPE html><html>Sign in</html>", whole[:200], b""):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            open_adapter(str(path))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def folder_of(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return f"hf:{tmp_path}"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "clip", "architectures": ["FGCLIPModel"]}, "FGCLIPModel"),
        (
            {"model_type": "clip", "auto_map": {"AutoModel": "modeling_fgclip.FGCLIPModel"}},
            "no CLIPModel",
        ),
        ({"model_type": "siglip2", "architectures": ["Siglip2Model"]}, "NaFlex"),
        ({"model_type": "bert"}, "'bert'"),
    ],
)
def test_folders_that_would_load_as_something_else_are_refused_by_name(tmp_path, config, named):
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match=named) as caught:
        open_adapter(folder_of(tmp_path, **config))
    assert "\n" not in str(caught.value)


def test_a_truncated_folder_of_transformers_is_one_line(tmp_path):
    transformers = pytest.importorskip("transformers")
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        text_config=tower | {"num_attention_heads": 4},
        vision_config=tower | {"num_attention_heads": 4, "image_size": 32, "patch_size": 8},
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        open_adapter(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["open_clip:ViT-B-16:x.pt", "hf:some/model"])
def test_a_torchvision_of_another_build_is_one_line(monkeypatch, tmp_path, name):
    package = name.partition(":")[0].replace("hf", "transformers")
    (tmp_path / f"{package}.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist\\nmore")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, package, raising=False)
    with pytest.raises(ConfigError, match="torchvision of the same build") as caught:
        open_adapter(name)
    assert "\n" not in str(caught.value)
