"""Imports bring what is used: a cluster starts many processes, and most need no PyTorch."""

import ast
import os
import subprocess
import sys
from pathlib import Path

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


PUBLIC = sorted(
    path.stem
    for path in Path(caft.__file__).parent.iterdir()
    if path.stem[0] not in "_." and (path.suffix == ".py" or (path / "__init__.py").is_file())
)


def test_every_submodule_is_there_after_one_import():
    program = f"import caft; print(*(getattr(caft, name).__name__ for name in {PUBLIC}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert done.stdout.split() == [f"caft.{name}" for name in PUBLIC]
    assert set(PUBLIC) | set(caft.__all__) <= set(dir(caft))


def test_type_checkers_know_every_submodule():
    tree = ast.parse(Path(caft.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    known = {alias.asname for node in imports if node.module == "caft" for alias in node.names}
    assert known == set(PUBLIC)
    assert (Path(caft.__file__).parent / "py.typed").is_file()


def test_caft_is_imported_where_torch_is_absent(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    program = (
        "import caft; dir(caft); print(caft.errors.CAFTError.__name__, caft.captions.__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["CAFTError", "caft.captions"]
