"""Exported checkpoints: what is in the folder, that it loads, and what it refuses to replace."""

import json
import re

import pytest
import torch
import yaml
from tests_support import random_images, tiny_config

import caft
from caft.checkpoint import read_manifest, save_weights, write_manifest
from caft.checkpoint.__main__ import main
from caft.checkpoint.export import export
from caft.errors import CheckpointError, ConfigError

HOSTILE = "a|b`` <img src=x onerror=alert(1)> [x](javascript:1)\n# head\n---\n```\n**bold**"


@pytest.fixture
def run_folder(tmp_path):
    """A finished training run: its recipe, its last checkpoint, and the dataset it names."""
    torch.manual_seed(0)
    run, data = tmp_path / "run", tmp_path / "birds"
    save_weights(caft.create_model(tiny_config(name="tiny_caft")), run / "final")
    info = {
        "step": 120,
        "dataset": str(data),
        "dataset_fingerprint": "f00d",
        "mlflow_run_id": "abc",
        "metrics": {"loss/total": 1.25, "loss/whole": 0.5},
    }
    write_manifest(run / "final", info)
    recipe = {
        "output": str(run),
        "dataset": str(data),
        "tracking": {"uri": "http://user:secret@host"},
        "epochs": 32.0,
        "global_batch": 2048,
    }
    (run / "train.yaml").write_text(yaml.safe_dump(recipe))
    data.mkdir()
    sources = {"birds": {"licence": "CC BY 4.0", "rows": 9}, "own": {"licence": ""}}
    (data / "manifest.json").write_text(json.dumps({"sources": sources}))
    return run


def front_matter(card: str) -> dict:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def test_an_export_loads_and_computes_as_its_checkpoint(run_folder, tmp_path, capsys):
    target = tmp_path / "hub"
    assert main(["export", str(run_folder / "final"), str(target)]) == 0
    assert "tiny_caft" in capsys.readouterr().out
    images = random_images(2)
    ours = caft.load_model(run_folder / "final").encode_image(images).whole
    theirs = caft.load_model(target).encode_image(images).whole
    assert torch.equal(ours, theirs)
    others = {file.name for file in target.iterdir() if file.suffix != ".py"}  # see test_hub
    assert others == {
        "README.md",
        "config.json",
        "config.yaml",
        "manifest.json",
        "model.safetensors",
        "recipe.yaml",
        "tokenizer.json",
    }
    config = json.loads((target / "config.json").read_text())
    assert config["model_type"] == "caft"
    assert config["caft"]["image"]["segments"] == [8, 4, 2]


def test_the_card_tells_recipe_data_and_metrics_and_nothing_of_the_machine(run_folder, tmp_path):
    export(run_folder / "final", tmp_path / "hub", license_id="cc-by-4.0")
    card = (tmp_path / "hub" / "README.md").read_text()
    matter = front_matter(card)
    assert matter["license"] == "cc-by-4.0"
    assert matter["pipeline_tag"] == "zero-shot-image-classification"
    assert "image-text-retrieval" in matter["tags"]
    for told in ("f00d", "| loss\\/total | 1\\.25 |", "global_batch: 2048", "CC BY 4\\.0", "120"):
        assert told in card
    assert "dataset: birds\n" in card
    published = "".join(
        file.read_text()
        for file in (tmp_path / "hub").iterdir()
        if file.suffix not in (".safetensors", ".py")
    )
    for hidden in (str(tmp_path), "user:secret"):
        assert hidden not in published, hidden


def test_without_a_licence_the_card_says_so(tmp_path):
    save_weights(caft.create_model(tiny_config()), tmp_path / "alone")
    write_manifest(tmp_path / "alone", {})
    export(tmp_path / "alone", tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert front_matter(card)["license"] == "other"
    assert "No licence of the weights was named" in card
    assert not (tmp_path / "hub" / "recipe.yaml").exists()


def test_text_of_configurations_cannot_become_markup(run_folder, tmp_path):
    final = run_folder / "final"
    save_weights(caft.create_model(tiny_config(name=HOSTILE)), final)
    metrics = {HOSTILE: 1.0}
    write_manifest(final, {"dataset": str(tmp_path / "birds"), "metrics": metrics, "step": HOSTILE})
    recipe = {"dataset": HOSTILE, "note": HOSTILE}
    (run_folder / "train.yaml").write_text(yaml.safe_dump(recipe))
    sources = {"sources": {HOSTILE: {"licence": HOSTILE}}}
    (tmp_path / "birds" / "manifest.json").write_text(json.dumps(sources))
    export(final, tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert front_matter(card)["license"] == "other"
    body = card.split("\n---\n\n", 1)[1]
    before, _, rest = body.partition("````yaml\n")  # longer than any run of backticks inside
    block, _, after = rest.partition("\n````\n")
    assert yaml.safe_load(block)["note"] == HOSTILE
    outside = re.sub(r"^```python\n.*?^```$", "", before + after, flags=re.DOTALL | re.MULTILINE)
    unescaped = re.sub(r"\\[^\w\s]", "", outside)
    for markup in ("<", "[", "**", "\n---\n", "\n# head"):
        assert markup not in unescaped
    assert outside.count("\\<img") == 5  # title, step, metric, source and its licence: as text
    with pytest.raises(ConfigError, match="is no identifier of a licence"):
        export(final, tmp_path / "other", license_id=HOSTILE)


def test_an_export_is_written_anew_and_anything_else_is_left_alone(run_folder, tmp_path):
    target = tmp_path / "clone"
    (target / ".git").mkdir(parents=True)
    (target / ".git" / "config").write_text("mine")
    (target / ".gitattributes").write_text("*.safetensors filter=lfs")
    export(run_folder / "final", target)
    (target / "README.md").write_text("An edited card is no damage.")
    caft.load_model(target)
    export(run_folder / "final", target)
    assert "# tiny" in (target / "README.md").read_text()
    assert (target / ".git" / "config").read_text() == "mine"

    again = tmp_path / "again"
    export(target, again)  # what is known travels on
    assert read_manifest(again)["step"] == 120
    assert "global_batch: 2048" in (again / "README.md").read_text()

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.md").write_text("years of work")
    for mine in (tmp_path / "thesis", run_folder / "final", run_folder / "train.yaml"):
        with pytest.raises(CheckpointError, match="neither empty nor an export"):
            export(run_folder / "final", mine)
    assert (tmp_path / "thesis" / "chapter.md").read_text() == "years of work"


def test_a_damaged_checkpoint_is_not_exported(run_folder, tmp_path, capsys):
    weights = run_folder / "final" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["export", str(run_folder / "final"), str(tmp_path / "hub")]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()
