"""Configurations from strangers run nothing and exhaust nothing; passwords in them go nowhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import caft
from caft.checkpoint import CONFIG, CONFIG_METADATA_KEY, write_manifest
from caft.config import ModelConfig, load_config
from caft.errors import CheckpointError, ConfigError
from pipelines.data.__main__ import main
from pipelines.data.config import DataConfig

TAGS = (
    "!!python/object/apply:os.mkdir ['{made}']",
    "!!python/object/new:os.mkdir ['{made}']",
    "!!python/name:os.mkdir",
    "!!python/module:os",
    "!!python/object:caft.config.ModelConfig {{}}",
)
ALIASES = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
)
SECRET = "hunter2-and-more"


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_tags_are_refused_and_make_nothing(tmp_path, tag):
    tag = tag.format(made=tmp_path / "made")
    file = tmp_path / "evil.yaml"
    file.write_text(f"output: {tag}\n")
    with pytest.raises(ConfigError, match=r"evil\.yaml: not valid YAML"):
        load_config(DataConfig, file)
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(DataConfig, None, [f"output={tag}"])
    (tmp_path / CONFIG).write_text(f"name: {tag}\n")
    write_manifest(tmp_path, {}, (CONFIG,))
    with pytest.raises(ConfigError, match=r"config\.yaml: not valid YAML"):
        caft.load_model(tmp_path)
    single = tmp_path / "evil.safetensors"
    save_file({"a": torch.zeros(1)}, single, metadata={CONFIG_METADATA_KEY: f"name: {tag}"})
    with pytest.raises(CheckpointError, match=r"evil\.safetensors: .*not valid YAML"):
        caft.load_model(single)
    assert not (tmp_path / "made").exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("key", ["embed_dim", "name", "unknown", "image", "losses"])
def test_aliases_of_aliases_fill_no_memory(tmp_path, key):
    """Ten lines of YAML that spell ten thousand million values."""
    file = tmp_path / "bomb.yaml"
    file.write_text(f"{ALIASES}\n{key}: *a9\n")
    with pytest.raises(ConfigError) as caught:
        load_config(ModelConfig, file)
    assert len(str(caught.value)) < 2000


PLACES = (
    ("tracking.uri", f"http://me:{SECRET}@mlflow.example:5000"),
    ("tracking.uri", f"postgresql://mlflow:{SECRET}@db.example/mlflow"),
    ("tracking.artifact_root", f"s3://key:{SECRET}@bucket/runs"),
    ("sources.0.path", f"https://me:{SECRET}@lists.example/a.csv"),
    ("sources.0.path", f"https://lists.example/a.csv?sig={SECRET}"),
    ("sources.0.path", f"https://lists.example/a.csv?X-Amz-Signature={SECRET}"),
)


@pytest.mark.parametrize(("key", "value"), PLACES)
def test_a_password_in_a_configuration_is_refused_and_not_shown(tmp_path, capfd, key, value):
    file = tmp_path / "data.yaml"
    config = {"output": str(tmp_path / "out"), "sources": [{"name": "a", "path": "/a.csv"}]}
    file.write_text(json.dumps(config))
    assert main([str(file), f"{key}={value}", "--print-config"]) == 2
    printed = "".join(capfd.readouterr())
    assert f"{key}: holds a password or signature" in printed
    assert SECRET not in printed
    assert not (tmp_path / "out").exists()


def test_addresses_without_a_password_are_accepted(tmp_path):
    for uri in ("http://mlflow.example:5000/a@b", "postgresql://mlflow@db.example:5432/mlflow"):
        overrides = ["output=/out", 'sources=[{"name": "a", "path": "/a:b@c.csv?x=token"}]']
        config = load_config(DataConfig, None, [*overrides, f"tracking.uri={uri}"])
        assert config.tracking.uri == uri


def test_secrets_of_the_environment_are_not_in_a_printed_configuration():
    values = {
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-1",
        "AWS_SECRET_ACCESS_KEY": f"{SECRET}-2",
        "RAY_AUTH_TOKEN": f"{SECRET}-3",
    }
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pipelines.data", "configs/data/demo.yaml", "--print-config"]

    def run(**more: str) -> subprocess.CompletedProcess:
        environment = os.environ | values | more
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)

    shown = run()
    assert shown.returncode == 0, shown.stderr
    assert SECRET not in shown.stdout + shown.stderr
    refused = run(MLFLOW_TRACKING_URI=f"http://me:{SECRET}@mlflow.example")
    assert refused.returncode == 2
    assert "tracking.uri: holds a password" in refused.stderr
    assert SECRET not in refused.stdout + refused.stderr
