"""Models of the hub: an export that transformers runs without this package, fetched and published
through a hub on loopback, and the call that users of open_clip know."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.hub_server import TOKEN, running_hub
from tests_support import tiny_config, tiny_controls
from training_support import trained_config

import caft
from caft.checkpoint import save_weights, write_manifest
from caft.checkpoint.__main__ import main
from caft.checkpoint.export import export
from caft.errors import CheckpointError, ConfigError, StorageError

TESTS = Path(__file__).parent
PHOTOGRAPHS = sorted((TESTS.parent / "pipelines/demo/photographs").glob("*.jpg"))[:3]
CAPTIONS = ["A dog sleeps on a red sofa. A lamp stands behind it.", "Two people walk.", "Snow."]
# In a process that cannot import this package.
ELSEWHERE = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("caft", "pipelines"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy as np, torch, torchvision_operators
from transformers import AutoConfig, AutoModel, AutoProcessor
folder, images, texts = sys.argv[1], sys.argv[3].split("|"), sys.argv[4].split("|")
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=images, text=texts)
with torch.no_grad():
    out = model(**inputs)
    own = model.caft.encode_text(texts).whole
np.savez(sys.argv[2], scores=out.logits_per_image, images=out.image_embeds, texts=own,
         features=model.get_image_features(inputs["pixel_values"]).detach())
model.save_pretrained(folder + "-again")
"""


def checkpoint(folder: Path, config) -> Path:
    torch.manual_seed(0)
    save_weights(caft.create_model(config), folder)
    write_manifest(folder, {"step": 3})
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("constants.ENDPOINT", "hf_api.ENDPOINT"):
            monkeypatch.setattr(f"huggingface_hub.{name}", hub.url, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        constants = "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE"
        monkeypatch.setattr(constants, template)
        yield hub


@pytest.mark.parametrize("name", ["caft", "flair"])
def test_transformers_gives_the_same_numbers_without_this_package(name, tmp_path):
    pytest.importorskip("transformers")
    config = trained_config(tiny_config() if name == "caft" else tiny_controls()[name])
    export(checkpoint(tmp_path / "run", config), tmp_path / "hub")
    code, out = tmp_path / "elsewhere.py", tmp_path / "out.npz"
    code.write_text(ELSEWHERE)
    files = "|".join(map(str, PHOTOGRAPHS))
    command = [
        sys.executable,
        str(code),
        str(tmp_path / "hub"),
        str(out),
        files,
        "|".join(CAPTIONS),
    ]
    own = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": str(TESTS / "fixtures"),
    }
    environment = {**os.environ, **own}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, model = np.load(out), caft.from_pretrained(tmp_path / "hub")
    with torch.no_grad():
        images, texts = model.encode_image(PHOTOGRAPHS), model.encode_text(CAPTIONS)
    np.testing.assert_allclose(theirs["images"], images.whole, atol=1e-6)
    np.testing.assert_allclose(theirs["features"], images.whole, atol=1e-6)
    np.testing.assert_allclose(theirs["texts"], texts.whole, atol=1e-6)
    np.testing.assert_allclose(theirs["scores"], model.score(images, texts), atol=1e-5)


def test_a_model_goes_to_the_hub_and_comes_back(hub, tmp_path, capsys):
    run = checkpoint(tmp_path / "run", trained_config(tiny_config()))
    page = caft.push_to_hub(run, "me/birds", license_id="cc-by-4.0", token=TOKEN)
    assert page == f"{hub.url}/me/birds"
    card = hub.repositories["me/birds"]["README.md"].decode()
    assert "license: cc-by-4.0" in card
    assert json.loads(hub.repositories["me/birds"]["config.json"])["model_type"] == "caft"
    fetched = caft.from_pretrained("me/birds")
    for name, value in caft.load_model(run).state_dict().items():
        assert torch.equal(value, fetched.state_dict()[name])
    os.environ["HF_TOKEN"] = TOKEN
    try:
        assert main(["push", str(run), "me/hidden", "--private"]) == 0
    finally:
        del os.environ["HF_TOKEN"]
    assert f"{hub.url}/me/hidden" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"me/hidden: the hub has no such repository, or it"):
        caft.from_pretrained("me/hidden")
    assert caft.from_pretrained("me/hidden", token=TOKEN).config.name == fetched.config.name
    caft.push_to_hub(fetched, "me/bare", token=TOKEN)  # a model that is no checkpoint
    assert "model.safetensors" in hub.repositories["me/bare"]


def test_what_the_hub_has_not_is_one_line(hub, tmp_path):
    hub.repositories["me/other"] = {"README.md": b"nothing", "weights.safetensors": b"{}"}
    cases = [
        (("me/none",), {}, CheckpointError, "me/none: the hub has no such repository"),
        (("me/other",), {"revision": "v9"}, CheckpointError, "at v9: the hub has no such revision"),
        (("me/other",), {}, CheckpointError, r"has no manifest\.json, so it is no export of CAFT"),
        (("me/other",), {"filename": "a.pt"}, CheckpointError, r"has no file a\.pt"),
        (("no such folder",), {}, CheckpointError, "no such folder or file, and no repository"),
    ]
    for arguments, options, error, message in cases:
        with pytest.raises(error, match=message):
            caft.from_pretrained(*arguments, **options)
    run = checkpoint(tmp_path / "run", trained_config(tiny_config()))
    with pytest.raises(ConfigError, match="'birds' is no name of a repository"):
        caft.push_to_hub(run, "birds", token=TOKEN)
    with pytest.raises(StorageError, match=r"me/birds: .*401"):
        caft.push_to_hub(run, "me/birds", token="hf_bad")


def test_a_hub_that_is_unreachable_is_one_line(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(StorageError, match="me/birds: "):
        caft.from_pretrained("me/birds")


def test_the_call_that_users_of_open_clip_know(tmp_path):
    config = trained_config(tiny_config())
    folder = checkpoint(tmp_path / "run", config)
    model, train, evaluate = caft.create_model_and_transforms(folder)
    model.eval()
    tokenizer = caft.get_tokenizer(folder)
    images = torch.stack([evaluate(photo) for photo in PHOTOGRAPHS])
    ids = tokenizer(CAPTIONS)
    with torch.no_grad():
        own = model.encode_image(PHOTOGRAPHS).whole
        torch.testing.assert_close(model.encode_image(images).whole, own)
        texts = model.encode_text(CAPTIONS).whole
        torch.testing.assert_close(model.encode_text(ids).whole, texts)
    side = config.image.image_size_px
    torch.manual_seed(1)
    square = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    first, second = train(square), train(square)
    assert first.shape == second.shape == (3, side, side)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(train(square), first)
    fresh, _, _ = caft.create_model_and_transforms("caft_xs")
    with pytest.raises(CheckpointError, match="not the recipe caft_xs"):
        caft.create_model_and_transforms("caft_xs", pretrained=folder)
    assert fresh.config.name == "caft_xs"
