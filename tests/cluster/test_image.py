"""The image's recipe, replayed as far as that needs no Docker: what it copies, installs, runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
from manifests import KUBERAY, REPOSITORY, pods
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.train.gpu import OLDEST_DRIVERS

DOCKERFILE = REPOSITORY / "cluster" / "Dockerfile"
TARGETS = ("cpu", "cuda")


def stages() -> dict[str, tuple[str, list[list[str]]]]:
    """Name -> (what it starts from, instructions as words) of each stage."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    found: dict[str, tuple[str, list[list[str]]]] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.startswith("FROM"):
            _, parent, _, name = line.split()
            found[name] = (parent, [])
        elif line.strip():
            found[name][1].append(shlex.split(line))
    return found


def instructions(target: str) -> list[list[str]]:
    """Everything that leads to a target, of the stages it copies from too."""
    parent, own = stages()[target]
    before = instructions(parent) if parent in stages() else []
    copied = [w.removeprefix("--from=") for words in own for w in words if w.startswith("--from=")]
    return [*before, *(step for stage in copied for step in instructions(stage)), *own]


def commands(target: str) -> list[list[str]]:
    """Of RUN, one at a time."""
    runs = [" ".join(words[1:]) for words in instructions(target) if words[0] == "RUN"]
    return [part.split() for run in runs for part in run.split("&&")]


def copies(target: str) -> list[str]:
    """Paths of this repository that end up in the image."""
    steps = [words[1:-1] for words in stages()[target][1] if words[0] == "COPY"]
    return [path for step in steps if not step[0].startswith("--from") for path in step]


@pytest.mark.parametrize("target", TARGETS)
def test_it_starts_from_a_pinned_image_and_does_not_run_as_root(target):
    bases = {parent for parent, _ in stages().values() if parent not in stages()}
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    users = [words[1] for words in instructions(target) if words[0] == "USER"]
    assert users[-1] == "1000:1000"
    assert ["useradd", "--uid", "1000", "--gid", "1000", "--create-home", "caft"] in commands(
        target
    )
    ours = [pod for name, pod in pods() if name != "StatefulSet/postgres"]
    assert {pod["spec"]["securityContext"]["runAsUser"] for pod in ours} == {1000}


@pytest.mark.parametrize("target", TARGETS)
def test_every_install_heeds_the_constraints(target):
    installs = [words for words in commands(target) if words[:2] == ["pip", "install"]]
    assert len(installs) == 3
    assert all(words[2:4] == ["-c", "constraints.txt"] for words in installs)
    makefile = (REPOSITORY / "Makefile").read_text()
    theirs = re.findall(r"\$\(PIP\) install (.*)", makefile)
    assert [words[-1].split("[")[0] for words in installs] == [
        line.split()[-1].split("[")[0] for line in theirs
    ]
    for words in commands(target):
        if words[:2] == ["apt-get", "install"]:
            assert "--no-install-recommends" in words


def test_every_requirement_of_the_image_is_pinned_and_met():
    pins = dict(
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in [
        *project["dependencies"],
        *extras["cluster"],
        *extras["gpu"],
        *extras["language"],
        *extras["pipelines"],
        *extras["test"],
    ]:
        requirement = Requirement(text)
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{text}, pinned {pinned}"


def test_what_it_copies_is_enough_to_run(tmp_path):
    assert copies("cpu") == copies("cuda")
    allowed = {
        line.removeprefix("!")
        for line in (REPOSITORY / "cluster/Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for path in copies("cpu"):
        assert path in allowed
        source = REPOSITORY / path
        if source.is_dir():
            shutil.copytree(source, tmp_path / path)
        else:
            shutil.copy(source, tmp_path / path)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
    program = [sys.executable, "-m", "pipelines.train", "configs/train/caft_b_3m.yaml"]
    run = subprocess.run(
        [*program, "--print-config"],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "model: caft_b" in run.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_code_lies_where_the_manifests_look(target):
    folders = [words[1] for words in instructions(target) if words[0] == "WORKDIR"]
    assert folders == [folders[0]] * len(folders)
    jobs = "".join(path.read_text() for path in (KUBERAY / "jobs").glob("*.yaml"))
    assert set(re.findall(r"(/opt/\w+)/configs", jobs)) == {folders[0]}


def test_nothing_secret_is_written_into_it():
    text = DOCKERFILE.read_text()
    assert not re.search(r"(?i)password|secret|token|access_key", text)
    assert "ADD " not in text
    assert (REPOSITORY / "cluster/Dockerfile.dockerignore").read_text().splitlines()[1] == "*"


def test_the_launchers_image_has_a_driver_for_the_wheel_s_cuda():
    cuda = 13  # that torch's default build of constraints.txt is for
    text = (REPOSITORY / "cluster" / "gcp.yaml").read_text()
    (driver,) = re.findall(r"images/family/\S+-nvidia-(\d+)\n", text)
    assert int(driver) >= OLDEST_DRIVERS[cuda]
    assert (
        f"driver {OLDEST_DRIVERS[cuda]} or later" in (REPOSITORY / "cluster/aws.yaml").read_text()
    )


def test_the_image_for_gpus_finds_a_driver_that_gke_mounts():
    variables = dict(
        pair.split("=", 1)
        for words in instructions("cuda")
        if words[0] == "ENV"
        for pair in words[1:]
    )
    assert "/usr/local/nvidia/lib64" in variables["LD_LIBRARY_PATH"].split(":")
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert any("ibverbs-providers" in words for words in commands("cuda"))
    assert any("[cluster,gpu," in word for words in commands("cuda") for word in words)
