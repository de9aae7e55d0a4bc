"""The files of Ray's cluster launcher, against Ray's own validator and the recipes."""

import copy
import json

import jsonschema
import pytest
import yaml
from manifests import REPOSITORY, group
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from caft.config import load_config
from pipelines.train.config import TrainConfig

CLOUDS = ("aws", "gcp")


@pytest.fixture(params=CLOUDS)
def cluster(request):
    return yaml.safe_load((REPOSITORY / "cluster" / f"{request.param}.yaml").read_text())


def test_rays_validator_takes_it(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(cluster | {"idle_minutes": 3}))


def test_workers_are_spot_and_the_head_is_not(cluster):
    for name, kind in cluster["available_node_types"].items():
        text = json.dumps(kind["node_config"]).lower()
        assert ("spot" in text) == (name != cluster["head_node_type"])
    assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_machines_have_a_role_and_no_keys(cluster):
    for kind in cluster["available_node_types"].values():
        node = kind["node_config"]
        assert node.get("IamInstanceProfile") or node.get("serviceAccounts")
    text = json.dumps(cluster).lower()
    assert "access_key" not in text
    assert "ssh_private_key" not in text


def test_nodes_start_with_a_token_and_a_closed_dashboard(cluster):
    assert "/home/caft/.ray/auth_token" in cluster["file_mounts"]
    (head,) = cluster["head_start_ray_commands"][1:]
    (worker,) = cluster["worker_start_ray_commands"][1:]
    assert "--dashboard-host=127.0.0.1" in head
    for command in (head, worker):
        variables, options = command.split("ray start ")
        assert "RAY_AUTH_MODE=token" in variables
        start.make_context("start", options.split())  # flags that Ray knows


def test_a_gpu_machine_holds_a_recipe(cluster):
    config = load_config(TrainConfig, REPOSITORY / "configs/train/caft_b_30m.yaml")
    workers = config.scaling.workers_range[0]
    has = cluster["available_node_types"]["gpu"]["resources"]
    assert has["GPU"] == workers
    decoders = workers * config.ingest.loaders_per_worker
    assert has["CPU"] >= workers * config.scaling.cpus_per_worker + decoders


def test_clusters_are_alike(cluster):
    """The same image and as many workers as on Kubernetes."""
    assert cluster["docker"]["image"] == "registry.example.com/caft:0.1.0-cpu"
    for name in ("cpu", "gpu"):
        most = cluster["available_node_types"][name]["max_workers"]
        assert most == group(name)["maxReplicas"]
