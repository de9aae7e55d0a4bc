"""The source files that an exported folder carries, so that transformers runs a model where this
package is not installed: the modules behind `modeling_caft`, side by side in one folder."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = "caft"
ROOT = Path(__file__).resolve().parents[1]
ENTRIES = ("caft.hub.configuration_caft", "caft.hub.modeling_caft", "caft.hub.processing_caft")
AUTO_MAP = {
    "AutoConfig": "configuration_caft.CAFTConfig",
    "AutoModel": "modeling_caft.CAFTModel",
    "AutoProcessor": "processing_caft.CAFTProcessor",
}


def write_sources(folder: Path) -> list[str]:
    """Write the modules into `folder`; their names."""
    texts = {_file_name(module): _flattened(module) for module in _needed()}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return sorted(texts)


def _needed() -> set[str]:
    """All modules of this package that the entries import, at any depth."""
    found, waiting = set[str](), list(ENTRIES)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += [node.module or "" for node in _own_imports(_text(module))]
    return found


def _flattened(module: str) -> str:
    """A module's text whose imports of this package find files beside it."""
    lines = _text(module).splitlines(keepends=True)
    for node in _own_imports("".join(lines)):
        own, line = node.module or "", lines[node.lineno - 1]
        beside = _file_name(own).removesuffix(".py")
        lines[node.lineno - 1] = line.replace(f"from {own} import", f"from .{beside} import", 1)
    return "".join(lines)


def _own_imports(text: str) -> list[ast.ImportFrom]:
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom))
    return [node for node in nodes if (node.module or "").startswith(f"{PACKAGE}.")]


def _text(module: str) -> str:
    place = ROOT.joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return file.read_text(encoding="utf-8")


def _file_name(module: str) -> str:
    """`caft.superpixels.labels` as caft_superpixels_labels.py; the entries keep their names."""
    if module in ENTRIES:
        return f"{module.rsplit('.', 1)[1]}.py"
    return f"{module.replace('.', '_')}.py"
