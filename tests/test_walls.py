"""Which parts of the project import which: read from the source, imports inside functions and for
type checkers included."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("pipelines.data", "pipelines.train", "pipelines.evaluate", "pipelines.sweep")
# What a package must not import: the stages above it, or beside it.
WALLS = {
    "caft": ("pipelines", "ray", "mlflow", "deepspeed"),
    "pipelines.data": ("pipelines.train", "pipelines.evaluate", "pipelines.sweep"),
    "pipelines.train": ("pipelines.evaluate", "pipelines.sweep"),
    "pipelines.evaluate": ("pipelines.train", "pipelines.sweep"),
}
DEEPSPEED = "pipelines.train.deepspeed"


def source_files(root):
    """Module name -> file, of both packages."""
    found = {}
    for package in ("caft", "pipelines"):
        for file in sorted((root / package).rglob("*.py")):
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


def imports_of(name, file, known):
    """Names of all that a module imports; of ours, the modules that the imported names are."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*base, *filter(None, [node.module])]) if node.level else node.module
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in known else source


def graph(root):
    files = source_files(root)
    return {name: set(imports_of(name, file, files)) - {name} for name, file in files.items()}


def is_below(name, package):
    return name == package or name.startswith(f"{package}.")


def breaches(imports):
    for name, imported in imports.items():
        for target in sorted(imported):
            for package, forbidden in WALLS.items():
                if is_below(name, package) and any(is_below(target, other) for other in forbidden):
                    yield f"{name} imports {target}"
            if is_below(target, "deepspeed") and not is_below(name, DEEPSPEED):
                yield f"{name} imports {target}"
            shared = name.count(".") == 1 and name.startswith("pipelines.")
            if shared and name not in STAGES and any(is_below(target, s) for s in STAGES[1:]):
                yield f"{name}, which all stages use, imports {target}"


def a_circle(imports):
    """Modules of which each imports the next and the last the first; empty where there are none."""
    done, path = set(), []

    def walk(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        found = next((c for t in sorted(imports[name]) if t in imports and (c := walk(t))), [])
        path.pop()
        done.add(name)
        return found

    return next((circle for name in imports if (circle := walk(name))), [])


def test_no_part_imports_what_is_above_or_beside_it():
    assert not list(breaches(graph(ROOT)))


def test_no_modules_import_each_other_in_a_circle():
    assert not a_circle(graph(ROOT))


@pytest.mark.parametrize(
    ("module", "line", "seen"),
    [
        ("caft/a.py", "def f():\n    from pipelines import storage\n", "caft.a imports pipelines"),
        ("pipelines/data/a.py", "import pipelines.train.b\n", "pipelines.data.a imports"),
        ("pipelines/train/a.py", "from ..evaluate import c\n", "imports pipelines.evaluate.c"),
        ("pipelines/evaluate/a.py", "from pipelines.train.b import x\n", "evaluate.a imports"),
        ("pipelines/train/a.py", "def f():\n    import deepspeed.ops\n", "imports deepspeed.ops"),
        ("pipelines/a.py", "from pipelines.evaluate import c\n", "pipelines.a, which all stages"),
    ],
)
def test_a_breach_is_found_wherever_it_stands(tmp_path, module, line, seen):
    for name in ("caft/a", "pipelines/storage", "pipelines/data/a", "pipelines/train/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "pipelines/evaluate").mkdir()
    (tmp_path / "pipelines/evaluate/c.py").write_text("")
    assert not list(breaches(graph(tmp_path)))
    (tmp_path / module).write_text(line)
    (found,) = breaches(graph(tmp_path))
    assert seen in found


def test_a_circle_is_found(tmp_path):
    (tmp_path / "caft").mkdir()
    for name, other in {"a": "b", "b": "c", "c": "a"}.items():
        (tmp_path / "caft" / f"{name}.py").write_text(f"def f():\n    from caft.{other} import x\n")
    assert sorted(a_circle(graph(tmp_path))) == ["caft.a", "caft.b", "caft.c"]
