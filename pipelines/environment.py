"""What libraries stumble over in a process's environment: a proxy, a user without name or home.
Set right when `pipelines` is imported, on the driver as on every worker."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# Trackers report to their makers unless told otherwise.
SILENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
LOOPBACK = ("localhost", "127.0.0.0/8", "127.0.0.1", "::1")


def prepare() -> None:
    """Change the environment where something would fail, and nowhere else."""
    _spare_loopback()
    _name_user()
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)


def _spare_loopback() -> None:
    """Let nothing send what is meant for this machine through a proxy."""
    if not any(os.environ.get(n) for name in PROXIES for n in (name, name.upper())):
        return
    for name in ("no_proxy", "NO_PROXY"):  # some libraries read one, some the other
        named = [host.strip() for host in os.environ.get(name, "").split(",") if host.strip()]
        if "*" not in named:
            os.environ[name] = ",".join(dict.fromkeys([*named, *LOOPBACK]))


def _name_user() -> None:
    """Give a user id that has no entry in /etc/passwd, as containers have them, what Python,
    PyTorch and MLflow ask for."""
    number = os.getuid()
    try:
        home = os.environ.get("HOME") or pwd.getpwuid(number).pw_dir
    except KeyError:
        home = ""
    try:
        pwd.getpwuid(number)
    except KeyError:
        if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
            os.environ["USER"] = f"uid-{number}"
    usable = home and Path(home).is_dir() and (home != "/" or os.access(home, os.W_OK))
    if not usable:
        os.environ["HOME"] = str(_own_folder(number))


def _own_folder(number: int) -> Path:
    folder = Path(tempfile.gettempdir()) / f"caft-home-{number}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != number:
        return Path(tempfile.mkdtemp(prefix="caft-home-"))  # somebody else has made that one
    return folder
