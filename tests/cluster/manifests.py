"""Reads the Kubernetes objects under cluster/kuberay, and the parts that tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
KUBERAY = REPOSITORY / "cluster" / "kuberay"
JOBS = KUBERAY / "jobs"
Object = dict[str, Any]


def kustomization(folder: Path) -> Object:
    return yaml.load((folder / "kustomization.yaml").read_text(), Loader=yaml.CSafeLoader)


def read(folder: Path) -> list[Object]:
    """Every object of the files that a kustomization lists."""
    files = [folder / name for name in kustomization(folder)["resources"]]
    texts = [file.read_text() for file in files]
    return [item for text in texts for item in yaml.load_all(text, Loader=yaml.CSafeLoader)]


def everything() -> list[Object]:
    return read(KUBERAY) + read(JOBS)


def of_kind(kind: str) -> list[Object]:
    return [item for item in everything() if item["kind"] == kind]


def pods() -> Iterator[tuple[str, Object]]:
    """(name, pod template) of everything that becomes a pod."""
    for item in everything():
        name, spec = f"{item['kind']}/{item['metadata']['name']}", item.get("spec", {})
        if item["kind"] == "RayCluster":
            yield f"{name}/head", spec["headGroupSpec"]["template"]
            for group in spec["workerGroupSpecs"]:
                yield f"{name}/{group['groupName']}", group["template"]
        elif item["kind"] == "RayJob":
            yield name, spec["submitterPodTemplate"]
        elif item["kind"] in ("Deployment", "StatefulSet"):
            yield name, spec["template"]


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def group(name: str) -> Object:
    """A worker group of the RayCluster."""
    (cluster,) = of_kind("RayCluster")
    return next(g for g in cluster["spec"]["workerGroupSpecs"] if g["groupName"] == name)


def strict(schema: Any) -> Any:
    """A custom resource's schema, with a field that it does not know an error, as in
    `kubectl --validate=strict`."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made
