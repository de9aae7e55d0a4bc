"""The Kubernetes objects: against the real schemas, against each other, against the recipes."""

import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from manifests import (
    JOBS,
    KUBERAY,
    REPOSITORY,
    containers,
    everything,
    group,
    kustomization,
    of_kind,
    pods,
    read,
    strict,
)
from mlflow.cli import cli as mlflow_cli

from caft.config import load_config
from pipelines.submit.chain import SCHEMAS
from pipelines.submit.kuberay import TOKEN_KEY
from pipelines.train.config import TrainConfig

SCHEMAS_OF_KUBERAY = Path(__file__).resolve().parents[3] / "shared" / "data" / "kuberay"
needs_schemas = pytest.mark.skipif(
    not SCHEMAS_OF_KUBERAY.exists(), reason="KubeRay's definitions are not here"
)
VERSIONS = ("1.33", kubernetes_validate.latest_version())
KUBERNETES = "/opt/caft"  # where the image has this repository
ordinary = [item for item in everything() if "ray.io" not in item["apiVersion"]]


def name_of(item) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


@pytest.mark.parametrize("item", ordinary, ids=name_of)
def test_ordinary_objects_follow_kubernetes_own_schemas(item):
    for version in VERSIONS:
        kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize(("name", "pod"), pods(), ids=lambda value: str(value)[:40])
def test_pods_follow_kubernetes_own_schema(name, pod):
    metadata = {"name": "pod", **pod["metadata"]}
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}
    for version in VERSIONS:
        kubernetes_validate.validate(whole, version, strict=True)


@needs_schemas
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_ray_objects_follow_kuberays_own_schemas(kind):
    text = (SCHEMAS_OF_KUBERAY / f"ray.io_{kind.lower()}s.yaml").read_text()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    schema = strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    found = of_kind(kind)
    assert len(found) == {"RayCluster": 1, "RayJob": 5}[kind]
    validator = jsonschema.Draft202012Validator(schema)
    for item in found:
        validator.validate(item)
    found[0]["spec"]["typo"] = 1
    with pytest.raises(jsonschema.ValidationError, match="typo"):
        validator.validate(found[0])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", [KUBERAY, JOBS], ids=lambda folder: folder.name)
def test_kustomize_renders_every_object(folder):
    command = ["kubectl", "kustomize", str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rendered = list(yaml.safe_load_all(text))
    made = [item for item in rendered if item["kind"] == "ConfigMap"]
    assert sorted(map(name_of, rendered)) == sorted(map(name_of, [*read(folder), *made]))
    images = re.findall(r"image: (\S+)", text)
    assert images
    assert all(
        re.fullmatch(r"registry.example.com/caft:0.1.0-(cpu|cuda)|postgres:[\d.]+", i)
        for i in images
    )
    assert all(
        i["metadata"].get("namespace") == "caft" for i in rendered if i["kind"] != "Namespace"
    )


@pytest.mark.parametrize(("name", "pod"), pods(), ids=lambda value: str(value)[:40])
def test_pods_are_confined(name, pod):
    """Pod security 'restricted', which the namespace enforces, and a read-only root."""
    security = pod["spec"]["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
    for container in containers(pod):
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        claims = {"data"} if name.startswith("StatefulSet") else set()
        assert mounted <= volumes | claims


def test_what_serves_has_probes():
    for name, pod in pods():
        if not name.startswith("RayJob"):
            for container in pod["spec"]["containers"]:
                assert "livenessProbe" in container, name


def test_names_that_objects_refer_to_exist():
    accounts = {item["metadata"]["name"] for item in of_kind("ServiceAccount")}
    maps = {made["name"] for made in kustomization(KUBERAY)["configMapGenerator"]}
    images = {image["name"] for image in kustomization(KUBERAY)["images"]}
    secrets = documented_secrets()
    for name, pod in pods():
        assert pod["spec"].get("serviceAccountName", "caft") in accounts
        for container in containers(pod):
            assert container["image"] in images | {"postgres:17.6"}, name
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert source["configMapRef"]["name"] in maps
                else:
                    assert source["secretRef"]["name"] in secrets
            for variable in container.get("env", []):
                key = variable.get("valueFrom", {}).get("secretKeyRef")
                if key:
                    assert key["key"] in secrets[key["name"]], name


def documented_secrets() -> dict[str, set[str]]:
    """Name -> keys of the secrets that cluster/README.md creates."""
    text = (REPOSITORY / "cluster" / "README.md").read_text().replace("\\\n", " ")
    made = re.findall(r"create secret generic (\S+)(.*)", text)
    return {name: set(re.findall(r"--from-literal=([\w-]+)=", rest)) for name, rest in made}


def labels() -> list[dict[str, str]]:
    """Of every pod; KubeRay adds its own."""
    return [pod["metadata"]["labels"] for _, pod in pods()]


def test_selectors_meet_pods_and_ports_are_open():
    ports = {
        port["containerPort"]: port["name"]
        for _, pod in pods() for container in containers(pod) for port in container.get("ports", [])
    }  # fmt: skip
    for service in of_kind("Service"):
        selector = service["spec"]["selector"]
        assert any(selector.items() <= own.items() for own in labels())
        for port in service["spec"]["ports"]:
            assert ports[port["port"]] == port["targetPort"]
    selectors = [item["spec"]["selector"] for item in of_kind("PodDisruptionBudget")]
    for policy in of_kind("NetworkPolicy"):
        selectors.append(policy["spec"]["podSelector"])
        for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
            peers = rule.get("from", []) + rule.get("to", [])
            selectors += [peer["podSelector"] for peer in peers if "podSelector" in peer]
            for port in rule.get("ports", []):
                assert port["port"] in ports or port["port"] in (53, 443, 6443)
    for selector in selectors:
        wanted = selector.get("matchLabels", {}).items()
        assert any(wanted <= own.items() for own in labels()), selector
    template = of_kind("Deployment")[0]["spec"]
    assert template["selector"]["matchLabels"] == template["template"]["metadata"]["labels"]


def test_nothing_passes_unless_a_policy_says_so():
    (closed,) = [p for p in of_kind("NetworkPolicy") if p["metadata"]["name"] == "nothing-else"]
    assert closed["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in of_kind("NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            for peer in rule.get("to", []):
                if "ipBlock" in peer:  # neither private networks nor the cloud's credentials
                    assert {"10.0.0.0/8", "169.254.0.0/16"} <= set(peer["ipBlock"]["except"])


@pytest.mark.parametrize(
    ("cloud", "servers"),
    [
        ("gke", {("169.254.169.254/32", 80), ("169.254.169.252/32", 988)}),
        ("eks", {("169.254.170.23/32", 80)}),
    ],
)
def test_a_component_lets_identities_in_and_nothing_else(cloud, servers):
    (policy,) = read(KUBERAY / "identity" / cloud)
    for version in VERSIONS:
        kubernetes_validate.validate(policy, version, strict=True)
    opened = {
        (peer["ipBlock"]["cidr"], port["port"])
        for rule in policy["spec"]["egress"] for peer in rule["to"] for port in rule["ports"]
    }  # fmt: skip
    assert opened == servers
    (names,) = policy["spec"]["podSelector"]["matchExpressions"]
    with_account = {
        pod["metadata"]["labels"][names["key"]]
        for _, pod in pods() if pod["spec"].get("serviceAccountName", "").startswith("caft")
    }  # fmt: skip
    assert set(names["values"]) == with_account


def test_mlflows_administrator_is_in_no_pod_but_its_own():
    for name, pod in pods():
        for container in containers(pod):
            sources = [source.get("secretRef", {}) for source in container.get("envFrom", [])]
            assert "caft-mlflow" not in {source.get("name") for source in sources}
            for variable in container.get("env", []):
                key = variable.get("valueFrom", {}).get("secretKeyRef", {})
                if key.get("key") == "admin-password":
                    assert (name, container["name"]) == ("Deployment/mlflow", "mlflow")
                if variable["name"].startswith("MLFLOW_AUTH_ADMIN"):
                    assert key.get("name") != "caft-tracking"


def test_jobs_run_recipes_that_are_there_on_the_cluster_that_is_there():
    (cluster,) = of_kind("RayCluster")
    assert {job["metadata"]["name"] for job in of_kind("RayJob")} == set(SCHEMAS)
    for job in of_kind("RayJob"):
        spec = job["spec"]
        assert spec["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
        # Beside clusterSelector KubeRay 1.6 refuses it; older ones deleted the cluster to retry.
        assert "backoffLimit" not in spec
        assert spec["submitterConfig"]["backoffLimit"] > 0
        python, flag, module, *words = spec["entrypoint"].split()
        assert (python, flag) == ("python", "-m")
        stage = module.removeprefix("pipelines.")
        assert stage == job["metadata"]["name"]
        words = [word.replace(KUBERNETES, str(REPOSITORY)) for word in words if word != "run"]
        config = load_config(SCHEMAS[stage], words[0], words[1:])
        assert config.model_dump()["output"].startswith("s3://")
        for path in re.findall(rf"{REPOSITORY}\S+", " ".join(words)):
            assert Path(path).exists()
        assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_TRAIN_V2_ENABLED"] == "1"


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "configs/train").glob("caft_b_*.yaml")))
def test_a_gpu_worker_holds_a_recipe(recipe):
    config = load_config(TrainConfig, recipe)
    (container,) = group("gpu")["template"]["spec"]["containers"]
    has = container["resources"]["requests"]
    workers = config.scaling.workers_range[0]
    assert int(has["nvidia.com/gpu"]) == workers
    decoders = workers * config.ingest.loaders_per_worker
    assert int(has["cpu"]) >= workers * config.scaling.cpus_per_worker + decoders
    assert container["resources"]["limits"]["nvidia.com/gpu"] == has["nvidia.com/gpu"]


def test_workers_may_be_taken_away_and_the_head_may_not():
    (cluster,) = of_kind("RayCluster")
    for name in ("cpu", "gpu"):
        assert group(name)["minReplicas"] == 0 < group(name)["maxReplicas"]
        assert any("gke-spot" in t["key"] for t in group(name)["template"]["spec"]["tolerations"])
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    assert "tolerations" not in head
    assert "gke-spot" in str(head["affinity"]["nodeAffinity"])
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_versions_and_names_agree_with_the_code():
    (cluster,) = of_kind("RayCluster")
    pinned = (REPOSITORY / "constraints.txt").read_text()
    assert f"ray=={cluster['spec']['rayVersion']}\n" in pinned
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert f"key {TOKEN_KEY}" in (KUBERAY / "raycluster.yaml").read_text()


def test_the_tracking_server_starts_with_these_options():
    (deployment,) = of_kind("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    mlflow_cli.commands["server"].make_context("server", list(container["args"]))
    assert "--app-name=basic-auth" in container["args"]
    (settings,) = kustomization(KUBERAY)["configMapGenerator"]
    (uri,) = [s for s in settings["literals"] if s.startswith("MLFLOW_TRACKING_URI=")]
    host, port = uri.rsplit("//", 1)[1].split(":")
    service = next(s for s in of_kind("Service") if s["metadata"]["name"] == host)
    assert service["spec"]["ports"][0]["port"] == int(port)
    allowed = next(a for a in container["args"] if a.startswith("--allowed-hosts="))
    assert f"{host}:{port}" in allowed


@pytest.mark.parametrize(
    ("component", "resource"), [("efa", "vpc.amazonaws.com/efa"), ("infiniband", "rdma/hca_shared")]
)
def test_a_network_is_added_to_the_gpu_group_alone(component, resource):
    """The patch of a component, applied as kustomize does."""
    (patch,) = kustomization(KUBERAY / component)["patches"]
    (cluster,) = of_kind("RayCluster")
    assert patch["target"] == {"kind": "RayCluster", "name": cluster["metadata"]["name"]}
    for step in yaml.safe_load(patch["patch"]):
        *way, last = (word.replace("~1", "/") for word in step["path"].removeprefix("/").split("/"))
        place = cluster
        for word in way:
            place = place[int(word)] if isinstance(place, list) else place[word]
        if step["op"] == "test":
            assert place[last] == step["value"]
        else:
            assert last not in place
            place[last] = step["value"]
    groups = {g["groupName"]: g["template"] for g in cluster["spec"]["workerGroupSpecs"]}
    for name, pod in groups.items():
        asked = pod["spec"]["containers"][0]["resources"]
        assert (resource in asked["limits"]) == (name == "gpu")
        assert asked["requests"].get(resource) == asked["limits"].get(resource)
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
        whole["spec"] = pod["spec"]
        kubernetes_validate.validate(whole, VERSIONS[-1], strict=True)
