"""Imports bring what is used: a cluster starts many processes, and most need no PyTorch."""

import subprocess
import sys

import pytest

import caft

LOADED = "import sys, {module}; print(*sorted(name.partition('.')[0] for name in sys.modules))"


def loaded_by(module: str) -> set[str]:
    """Packages that a new process has once it has imported `module`."""
    program = [sys.executable, "-c", LOADED.format(module=module)]
    return set(subprocess.run(program, capture_output=True, check=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("caft", {"torch", "ray", "mlflow", "deepspeed"}),
        ("caft.model", {"ray", "pipelines", "mlflow", "deepspeed"}),
        ("pipelines.submit", {"torch", "mlflow", "deepspeed"}),
        ("pipelines.data.__main__", {"torch", "mlflow", "deepspeed"}),
        ("pipelines.data.chunk", {"torch", "mlflow", "deepspeed"}),
        ("pipelines.train.signal_board", {"torch", "mlflow", "deepspeed"}),
    ],
)
def test_a_process_loads_what_it_needs(module, without):
    assert not without & loaded_by(module)


def test_every_public_name_is_there_and_no_other():
    for name in caft.__all__:
        assert getattr(caft, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'caft' has no attribute 'loclaize'"):
        caft.loclaize  # noqa: B018
