"""What travels with a job: code and recipes, the same bytes each time, no data and no secrets."""

import os
import socket
import subprocess
import zipfile
from pathlib import Path

import pytest

from caft.errors import ConfigError
from pipelines import git
from pipelines.submit import package
from pipelines.submit.package import pack

FILES = (
    "caft/model.py", "configs/a.yaml", ".git/HEAD", ".venv/x.py", "env/pyvenv.cfg", "env/lib.py",
    "runs/demo/metrics.json", "caft/__pycache__/model.pyc", "set/part-0.parquet",
    "caft.egg-info/PKG-INFO",
)  # fmt: skip
KEYS = (
    ".env", ".netrc", "server.pem", "server.key", "id_rsa", "id_ed25519", "kubeconfig",
    "caft.kubeconfig", "terraform.tfstate", "terraform.tfstate.backup", "prod.tfvars", "store.jks",
    "store.p12", "a.keystore", "credentials.json", "client_secret_1.json", "secrets.yaml",
    "my-service-account.json", "ray-token",
)  # fmt: skip


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names(checkout: Path, into: Path) -> list[str]:
    with zipfile.ZipFile(pack(checkout, into).path) as archive:
        return archive.namelist()


@pytest.mark.timeout(30)
def test_code_and_recipes_travel_and_nothing_else(checkout, tmp_path, monkeypatch):
    os.symlink("/etc/passwd", checkout / "link")
    os.mkfifo(checkout / "pipe")
    monkeypatch.chdir(checkout)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    packed = pack(checkout, tmp_path)
    assert names(checkout, tmp_path) == ["caft/model.py", "configs/a.yaml"]
    said = "\n".join(packed.described())
    for reason in (
        "links: link", "no regular files: pipe, socket", "hidden: .venv/",
        "outputs and data: caft.egg-info/, runs/, set/part-0.parquet", "virtual environments: env/",
    ):  # fmt: skip
        assert f"left out, {reason}" in said
    assert f"2 files of {checkout}, 0.0 MiB" in said
    listener.close()


@pytest.mark.parametrize("name", KEYS)
def test_keys_and_passwords_are_left_out_and_named(name, checkout, tmp_path):
    for place in (checkout, checkout / "caft"):
        (place / name).write_text("secret")
    packed = pack(checkout, tmp_path)
    assert packed.left_out["keys and passwords"] == [name, f"caft/{name}"]
    assert [str(path) for path in packed.files] == ["caft/model.py", "configs/a.yaml"]


@pytest.mark.parametrize("is_repository", [True, False])
def test_what_git_ignores_stays_here_and_is_named(is_repository, checkout, tmp_path):
    (checkout / ".git" / "HEAD").unlink()
    (checkout / ".git").rmdir()
    (checkout / ".gitignore").write_text("/images/\n*.bin\n!caft/keep.bin\n")
    (checkout / "caft" / ".gitignore").write_text("local.yaml\n")
    for name in ("images/a.jpg", "big.bin", "caft/keep.bin", "caft/local.yaml", "new/a.bin",
                 "new/b.py"):  # fmt: skip
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text(name)
    if is_repository:
        subprocess.run(["git", "init", "-q", checkout], check=True)
    packed = pack(checkout, tmp_path)
    assert [str(path) for path in packed.files] == [
        "caft/keep.bin", "caft/model.py", "configs/a.yaml", "new/b.py",
    ]  # fmt: skip
    left_out = {"images/", "big.bin", "caft/local.yaml", "new/a.bin"}
    assert left_out <= set(packed.left_out["ignored by git"])


def test_the_revision_of_a_checkout(checkout, tmp_path):
    (checkout / ".git" / "HEAD").unlink()
    assert git.revision(tmp_path) is None
    subprocess.run(["git", "init", "-q", checkout], check=True)
    subprocess.run(["git", "-C", checkout, "add", "caft/model.py"], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    subprocess.run(["git", "-C", checkout, *author, "commit", "-qm", "First"], check=True)
    clean = git.revision(checkout)
    assert clean is not None
    (checkout / "caft" / "model.py").write_text("changed")
    assert git.revision(checkout) == f"{clean}+"


def test_equal_files_give_equal_bytes(checkout, tmp_path):
    first = pack(checkout, tmp_path).path.read_bytes()
    os.utime(checkout / "caft/model.py", (1e9, 1e9))
    assert pack(checkout, tmp_path).path.read_bytes() == first
    (checkout / "caft/model.py").write_text("changed")
    assert pack(checkout, tmp_path).path.read_bytes() != first


def test_large_files_are_left_out_and_named(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "MAX_FILE_BYTES", 100)
    (checkout / "caft" / "list.csv").write_bytes(b"x" * 101)
    assert ["caft/list.csv"] in pack(checkout, tmp_path).left_out.values()


def test_a_folder_full_of_images_is_refused_by_name(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "MAX_BYTES", 1000)
    (checkout / "images").mkdir()
    for number in range(11):
        (checkout / "images" / f"{number}.jpg").write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match=r"copied to every node.*move images \("):
        pack(checkout, tmp_path)
