"""Notebooks as pages of the site: a page names one as `<!-- notebook: FILE -->`.
Cells and their stored outputs become Markdown; a test runs the cells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

MARKER = re.compile(r"<!-- notebook: ([\w.]+) -->")
PICTURES = ("image/webp", "image/jpeg", "image/png")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' hook: a page's text with its notebook filled in."""
    return MARKER.sub(lambda found: as_markdown(Path(__file__).with_name(found[1])), markdown)


def as_markdown(file: Path) -> str:
    """A notebook's cells and outputs, in order."""
    parts = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts.append(f"```python\n{source}\n```")
            parts += [_output(output) for output in cell["outputs"]]
    return "\n\n".join(parts)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    kind = next((kind for kind in PICTURES if kind in data), None)
    if kind is not None:
        return f"![what the cell shows](data:{kind};base64,{''.join(data[kind]).strip()})"
    text = "".join(output.get("text") or data["text/plain"]).rstrip()
    return f"```text\n{text}\n```"
