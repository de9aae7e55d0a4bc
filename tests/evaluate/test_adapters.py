"""Models of other libraries and of one's own go through the same door."""

import importlib.util
import json
import sys

import cv2
import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401  (before open_clip)
from tests_support import tiny_config

import caft
from caft.captions import even_chunks
from caft.errors import CheckpointError, ConfigError
from caft.tokenizer import ASSET_DIR
from pipelines.evaluate.adapters import fingerprint_of, open_adapter

CAPTIONS = [["A red barn", "It has two doors"], ["Snow"], ["A boat", "The sea", "x " * 200]]


def library(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"the optional package {name} is not installed")


def rows(count=3):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 40, 60, 3), dtype=np.uint8)
    encoded = [cv2.imencode(".png", picture)[1].tobytes() for picture in pictures]
    return [
        {"url": f"http://a/{n}.png", "image": data, "superpixels": None}
        for n, data in enumerate(encoded)
    ]


@torch.inference_mode()
def encoded(adapter):
    images = adapter.encode_images(adapter.preprocess()(rows()))
    return images, adapter.encode_texts(CAPTIONS)


def test_a_model_of_one_s_own_is_scored_by_its_cosine():
    adapter = open_adapter("python:colours_adapter:make_colours")
    images, texts = encoded(adapter)
    scorer = adapter.scorer()
    tile = scorer.tile(scorer.prepare_images(images), scorer.prepare_texts(texts), ["whole"])
    expected = torch.cosine_similarity(images["whole"][:, None], texts["whole"][None], dim=-1)
    torch.testing.assert_close(tile["whole"], expected)
    assert (adapter.step, adapter.run_id) == (0, "")


def test_caft_s_own_features_are_those_of_the_model(tmp_path, make_checkpoint):
    torch.manual_seed(0)
    model = caft.create_model(tiny_config()).eval()
    adapter = open_adapter(str(make_checkpoint(tmp_path / "model", model)))
    images, texts = encoded(adapter)
    chunks = [chunk for caption in CAPTIONS for chunk in even_chunks(caption, 4)]
    with torch.inference_mode():
        expected = model.encode_text(model.tokenize(chunks).view(3, 4, -1))
    torch.testing.assert_close(texts["parts"], expected.parts)
    torch.testing.assert_close(texts["whole"], expected.whole)
    assert images["fine"].shape == (3, 8, 16)
    assert adapter.step == 7


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("python:no_such_module:make", ConfigError, "cannot be imported"),
        ("python:json:no_such_function", ConfigError, "cannot be imported"),
        ("/nowhere/model", CheckpointError, "no checkpoint folder"),
    ],
)
def test_what_cannot_be_opened_is_one_line(name, error, said):
    with pytest.raises(error, match=said) as caught:
        open_adapter(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("hf:some/model", "transformers", "transformers"),
        ("open_clip:B:x", "open_clip", "open-clip"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ConfigError, match=rf"pip install -e '\.\[{extra}\]'"):
        open_adapter(name)


def test_a_fingerprint_tells_weights_and_settings_apart():
    weights = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    prints = [
        fingerprint_of(weights, "x"),
        fingerprint_of(weights | {"a": torch.tensor([1, 1, 1.1])}, "x"),
        fingerprint_of({"a": weights["b"], "b": weights["a"]}, "x"),
        fingerprint_of(weights, "y"),
    ]
    functions = [f"Compose(<function to_rgb at 0x7f{n}>)" for n in range(2)]
    assert len({fingerprint_of(weights, printed) for printed in functions}) == 1
    assert len(set(prints)) == 4
    assert prints[0] == fingerprint_of(dict(reversed(weights.items())), "x")


@pytest.fixture(params=["clip", "siglip"])
def saved_dual_encoder(request, tmp_path):
    """A folder as `save_pretrained` writes it, of a small model with random weights."""
    import transformers

    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {**tower, "vocab_size": 49409, "max_position_embeddings": 24}
    text |= {"bos_token_id": 49406, "eos_token_id": 49408, "pad_token_id": 49408}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    if request.param == "clip":
        config = transformers.CLIPConfig(
            text_config={**text, "projection_dim": 16},
            vision_config={**vision, "projection_dim": 16},
            projection_dim=16,
        )
        model = transformers.CLIPModel(config)
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        processor = transformers.CLIPImageProcessorPil(**sizes)
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = transformers.SiglipModel(config)
        processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(ASSET_DIR / "clip.json"), pad_token="<|endoftext|>"
    )
    for part in (model, processor, tokenizer):
        part.save_pretrained(tmp_path)
    return tmp_path, model.eval(), processor


@library("transformers")
def test_a_transformers_model_is_read_with_its_own_preprocessing(saved_dual_encoder):
    from PIL import Image

    folder, model, processor = saved_dual_encoder
    adapter = open_adapter(f"hf:{folder}")
    images, texts = encoded(adapter)
    decoded = [cv2.imdecode(np.frombuffer(row["image"], np.uint8), 1)[..., ::-1] for row in rows()]
    inputs = processor(images=[Image.fromarray(p) for p in decoded], return_tensors="pt")
    with torch.inference_mode():
        expected = model.get_image_features(**inputs).pooler_output
    torch.testing.assert_close(images["whole"], expected, rtol=1e-4, atol=1e-5)
    assert texts["whole"].shape == expected.shape
    assert texts["whole"].isfinite().all()
    assert adapter.fingerprint == open_adapter(f"hf:{folder}").fingerprint


@library("transformers")
def test_a_transformers_model_of_another_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r"of type 'bert'; clip, siglip"):
        open_adapter(f"hf:{tmp_path}")


@library("transformers")
def test_a_transformers_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        open_adapter(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value)


@library("open_clip")
def test_an_open_clip_model_is_read_with_its_own_preprocessing(tmp_path):
    import open_clip
    from PIL import Image

    tower = {"layers": 1, "width": 32}
    config = {
        "embed_dim": 16,
        "vision_cfg": {**tower, "image_size": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {**tower, "context_length": 24, "vocab_size": 49408, "heads": 2},
    }
    (tmp_path / "tiny_clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model("tiny_clip").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    name = f"tiny_clip:{tmp_path / 'weights.pt'}"
    adapter = open_adapter(f"open_clip:{name}")
    images, texts = encoded(adapter)
    _, _, transform = open_clip.create_model_and_transforms(*name.split(":"))
    decoded = [cv2.imdecode(np.frombuffer(row["image"], np.uint8), 1)[..., ::-1] for row in rows()]
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([transform(Image.fromarray(p)) for p in decoded]))
    torch.testing.assert_close(images["whole"], expected)
    assert texts["whole"].shape == (3, 16)
    assert adapter.name == "tiny_clip-weights"


@library("open_clip")
@pytest.mark.parametrize("name", ["no_such_model:openai", "ViT-B-32:no_such_tag", "ViT-B-32"])
def test_what_open_clip_does_not_know_is_one_short_line(name):
    with pytest.raises(CheckpointError) as caught:
        open_adapter(f"open_clip:{name}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
