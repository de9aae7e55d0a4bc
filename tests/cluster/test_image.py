"""The image's recipe, replayed as far as that needs no Docker: what it copies, installs, runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import pytest
from manifests import KUBERAY, REPOSITORY, pods
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.train.gpu import OLDEST_DRIVERS

DOCKERFILE = REPOSITORY / "cluster" / "Dockerfile"
TARGETS = ("cpu", "cuda")
SETS = {
    "make": ("docs", "pipelines", "test"),
    "image": ("cluster", "language", "open-clip", "pipelines", "transformers"),
    "image-cuda": ("cluster", "gpu", "language", "open-clip", "pipelines", "transformers"),
}


def stages() -> dict[str, tuple[str, list[list[str]]]]:
    """Name -> (what it starts from, instructions as words) of each stage."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    found: dict[str, tuple[str, list[list[str]]]] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.startswith("FROM"):
            _, parent, _, name = line.split()
            found[name] = (parent, [])
        elif line.strip() and found:  # before the first one stand arguments of FROM
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
    assert bases == {"$PYTHON_IMAGE"}  # of an argument, which takes a digest
    assert re.search(r"^ARG PYTHON_IMAGE=\S+:\d+\.\d+\.\d+", DOCKERFILE.read_text(), re.M)
    users = [words[1] for words in instructions(target) if words[0] == "USER"]
    assert users[-1] == "1000:1000"
    assert ["useradd", "--uid", "1000", "--gid", "1000", "--create-home", "caft"] in commands(
        target
    )
    ours = [pod for name, pod in pods() if name != "StatefulSet/postgres"]
    assert {pod["spec"]["securityContext"]["runAsUser"] for pod in ours} == {1000}


TORCH = {"torch", "torchvision"}  # by version alone
HASHED = ["--no-deps", "--require-hashes"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_install_is_pinned_and_all_but_torch_by_hashes(target):
    installs = [words[2:] for words in commands(target) if words[:2] == ["pip", "install"]]
    makefile = (REPOSITORY / "Makefile").read_text()
    theirs = [line.split() for line in re.findall(r"\$\(PIP\) install (.*)", makefile)]
    for torch, rest, last, own in (
        installs,
        [theirs[0], theirs[1], theirs[3], theirs[2]],
    ):
        assert torch[:2] == ["-c", "constraints.txt"]
        assert torch[-2:] == ["torch", "torchvision"]
        assert rest[:2] == HASHED
        assert last[:2] == HASHED
        assert "--force-reinstall" in last
        assert last[-1].endswith("opencv.txt")
        assert own == ["--no-deps", "--no-build-isolation", "-e", "."]
    for words in commands(target):
        if words[:2] == ["apt-get", "install"]:
            assert "--no-install-recommends" in words


def locked(name: str) -> dict[str, str]:
    """Package -> version of a file of locks/, each with a hash at least."""
    entries = re.split(r"\n(?=\w)", (REPOSITORY / "locks" / f"{name}.txt").read_text())[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    pairs = [re.match(r"([\w.-]+)==([^ ;\\]+)", entry).groups() for entry in entries]
    return {canonicalize_name(package): version for package, version in pairs}


def test_every_requirement_is_pinned_met_and_locked():
    pins = dict(
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    files = {name: locked(name) for name in SETS}
    for name, packages in files.items():
        assert not TORCH & set(packages)
        assert "hatchling" in packages
        assert all(pins.get(package, version) == version for package, version in packages.items())
        texts = [*project["dependencies"], *(text for e in SETS[name] for text in extras[e])]
        for requirement in map(Requirement, texts):
            package = canonicalize_name(requirement.name)
            assert package in packages or package in TORCH
            assert requirement.specifier.contains(pins[package])


def test_what_is_installed_here_is_what_is_locked():
    for package, version in locked("make").items():
        with suppress(PackageNotFoundError):  # of another system
            assert installed_version(package) == version


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
    assert "gpu" in SETS["image-cuda"]
    assert any("image-cuda.txt" in words for words in commands("cuda"))
