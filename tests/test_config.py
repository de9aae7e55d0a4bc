"""Configuration files: what is accepted, and one clear line for what is not."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from caft.config import (
    ModelConfig,
    load_config,
    load_model_config,
    read_yaml,
    to_yaml,
    validate,
)
from caft.errors import ConfigError
from pipelines.data.config import DataConfig
from pipelines.embed.config import EmbedConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.sweep.config import SweepConfig
from pipelines.train.config import TrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"
SCHEMAS = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "embed": EmbedConfig,
    "sweep": SweepConfig,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid_and_round_trips(path, tmp_path):
    schema = SCHEMAS[path.parent.name]
    config = load_config(schema, path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert load_config(schema, copy) == config


def test_overrides_reach_into_sections_and_lists():
    path = CONFIGS / "data" / "demo.yaml"
    config = load_config(DataConfig, path, ["sources.1.path=/a.csv", "download.connections=7"])
    assert config.sources[1].path == "/a.csv"
    assert config.download.connections == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", r"demo\.yaml: optimizer\.learning_rate: unknown key"),
        ("epochs=many", r"demo\.yaml: epochs: .*number.*'many'"),
        ("epochs=-1", r"demo\.yaml: epochs: .*greater than 0"),
        ("epochs", r"override 'epochs': write it as key=value"),
        ("seed.deep=1", r"seed: .*valid integer"),
        ("epochs.a.b=1", r"what stands before 'a' holds a value"),
        ("global_batch=30", r"global_batch 30 is not a multiple of lanes 4"),
    ],
)
def test_wrong_keys_and_values_name_key_and_file(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, CONFIGS / "train" / "demo.yaml", [override])


def test_missing_file_and_broken_yaml(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such configuration file"):
        load_config(TrainConfig, tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        load_config(TrainConfig, broken)


def test_model_recipes_by_name():
    # The schema's defaults need no weights, and read what was stored before there was `preprocess`.
    published = {"image": {"superpixels": {"method": "sfcn"}, "preprocess": "crop"}}
    assert load_model_config("caft_b") == load_model_config(published)
    with pytest.raises(ConfigError, match=r"known: caft_b, caft_b_grid, .*clip_xs"):
        load_model_config("caft_huge")


def test_a_model_that_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="heads 5 does not divide width 768"):
        load_model_config({"image": {"heads": 5}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": {"encoder": "vit"}}, r"image: .*encoder is 'superpixels' or 'flat'"),
        ({"image": {"encoder": "flat", "segments": [4]}}, r": image\.segments: unknown key"),
        ({"image": {"encoder": "flat", "heads": 5}}, r": image: heads 5 does not divide width 768"),
        ({"losses": {"whole": "none"}}, r"coarse half .* without a loss.*image\.encoder flat"),
        ({"losses": {"whole": "none", "parts": False}}, r"losses: .*leave no loss"),
        (
            {"losses": {"parts": False, "weights": {"whole": 0}}},
            r"losses: weights: every loss weigh",
        ),
        ({"losses": {"weights": {"wole": 2}}}, r"losses\.weights\.wole: unknown key"),
        (
            {"losses": {"parts": False, "weights": {"part_multi_positive": 2}}},
            r"losses: weights\.part_multi_positive 2: this configuration has no such loss",
        ),
        ({"base": "caft_huge"}, r"model 'caft_huge': no such recipe"),
        ({"base": "caft_b", "losses": {"prts": False}}, r": losses\.prts: unknown key"),
    ],
)
def test_controls_that_cannot_be_built_name_the_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_model_config(changes)


def test_a_model_may_stand_on_a_recipe_and_differ_in_some_keys():
    base = load_model_config("caft_xs")
    changed = load_model_config({"base": "caft_xs", "losses": {"parts": False}})
    assert changed.name == "caft_xs losses.parts=false"
    expected = base.model_dump() | {"name": changed.name}
    expected["losses"] = expected["losses"] | {"parts": False}
    assert changed.model_dump() == expected
    named = load_model_config({"base": "caft_xs", "name": "mine", "image": {"heads": 8}})
    assert (named.name, named.image.heads, named.image.width) == ("mine", 8, 128)


def test_overrides_reach_into_a_model_that_is_named_by_its_recipe():
    path = CONFIGS / "train" / "demo.yaml"
    changed = load_config(TrainConfig, path, ["model.losses.parts=false", "model.text.layers=3"])
    assert changed.model.image == load_model_config("caft_xs").image
    assert (changed.model.losses.parts, changed.model.text.layers) == (False, 3)
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, path, ["model.losses.prts=false"])
    assert (
        str(caught.value) == f"{path}: model.losses.prts: unknown key; the nearest one is 'parts'"
    )


def test_command_line_prints_the_resolved_configuration_and_one_line_errors():
    command = [sys.executable, "-m", "pipelines.train", str(CONFIGS / "train" / "demo.yaml")]
    shown = subprocess.run(
        [*command, "seed=7", "--print-config"], capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(shown.stdout)["seed"] == 7
    wrong = subprocess.run([*command, "sed=7"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.strip().splitlines()[-1].startswith("ConfigError: ")
    assert "sed: unknown key" in wrong.stderr


def test_crops_of_configurations_from_before_the_key_keep_the_picture_s_shape():
    demo = CONFIGS / "train" / "demo.yaml"
    raw = read_yaml(demo)
    raw["ingest"].pop("crop")
    fresh = validate(TrainConfig, raw, "new").ingest.crop
    assert (fresh.min_scale, fresh.ratio) == (0.9, (3 / 4, 4 / 3))
    raw["ingest"]["crop_min_scale"] = 0.6
    former = validate(TrainConfig, raw, "former")
    assert (former.ingest.crop.min_scale, former.ingest.crop.ratio) == (0.6, None)
    again = validate(TrainConfig, yaml.safe_load(to_yaml(former)), "stored")
    assert again == former
    with pytest.raises(ConfigError, match=r"crop_min_scale: is crop now, and both are given"):
        load_config(TrainConfig, demo, ["ingest.crop_min_scale=0.5"])
    raw["ingest"]["crop_min_scale"] = 2
    with pytest.raises(ConfigError, match=r"ingest\.crop\.min_scale: .* \(got 2\)"):
        validate(TrainConfig, raw, "former")
    with pytest.raises(ConfigError, match=r"ingest\.crop: ratio \[1\.5, 1\]: .* least comes first"):
        load_config(TrainConfig, demo, ["ingest.crop.ratio=[1.5, 1.0]"])
