"""The notebook of the documentation: its cells run, show what it says, and the site shows them."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK = DOCS / "tour.ipynb"


@pytest.fixture(scope="module")
def ran():
    """What the cells leave behind, and per code cell its last value and stored output."""
    names: dict = {}
    values = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(DOCS)
        for cell in json.loads(NOTEBOOK.read_text())["cells"]:
            if cell["cell_type"] != "code":
                continue
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "tour", "exec"), names)
            value = (
                None
                if last is None
                else eval(compile(ast.Expression(last.value), "", "eval"), names)
            )
            values.append((value, cell["outputs"]))
    return names, values


def test_it_ranks_points_and_groups(ran):
    names, values = ran
    assert names["recalls"]["t2i_r1"] > 0.9
    assert np.mean(names["hits"]) > 5 * names["chance"]
    sizes = values[-1][0]
    assert sizes == sorted(sizes, reverse=True)
    for fine, coarse in zip(names["levels"], names["levels"][1:], strict=False):
        assert len(np.unique(np.stack([fine, coarse], -1).reshape(-1, 2), axis=0)) == len(
            np.unique(fine)
        )


def test_stored_outputs_are_what_the_cells_give(ran):
    """But for the last digits of numbers, which differ between processors."""
    shown = [(value, output) for value, outputs in ran[1] for output in outputs if "data" in output]
    texts = [(value, "".join(output["data"]["text/plain"])) for value, output in shown]
    assert [re.sub(r"\s", "", repr(value))[:12] for value, _ in texts] == [
        re.sub(r"\s", "", text)[:12] for _, text in texts
    ]


def test_the_site_shows_code_text_and_pictures():
    spec = importlib.util.spec_from_file_location("notebooks", DOCS / "notebooks.py")
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    page = notebooks.on_page_markdown((DOCS / "tour.md").read_text())
    assert "<!--" not in page
    assert 'caft.load_model("assets/demo-model")' in page
    assert "](data:image/jpeg;base64," in page
    assert "```text\npointing " in page
