"""Every Python block of the pages runs as a newcomer runs it: in a folder with a JPEG file."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from tests_support import tiny_config

import caft
from caft.checkpoint import save_weights, write_manifest
from caft.checkpoint.card import Card, model_card
from caft.config import SuperpixelConfig

ROOT = Path(__file__).parents[1]
PHOTOGRAPH = next((ROOT / "pipelines/demo/photographs").glob("*.jpg"))
PAGES = sorted(
    file for pattern in ("*.md", "docs/*.md", "cluster/**/*.md") for file in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(block, id=f"{page.stem} {number}")
    for page in PAGES
    for number, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A JPEG file, and a small model where the pages have one."""
    torch.manual_seed(0)
    image = tiny_config().image.model_copy(
        update={"superpixels": SuperpixelConfig(method="seeds", cell_px=8)}
    )
    for name in ("runs/demo/train/final", "path/to/this/folder"):
        save_weights(caft.create_model(tiny_config(image=image)), tmp_path / name)
        write_manifest(tmp_path / name, {})
    shutil.copy(PHOTOGRAPH, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pages_have_blocks():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs(block, folder):
    exec(block, {})


def test_what_the_readme_computes_has_the_shapes_it_says(folder):
    (block,) = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    names: dict = {}
    exec(block, names)
    assert names["scores"].shape == (1, 2)
    assert names["heat"].shape == (2, *names["levels"][0].shape)
    assert (folder / "panel.webp").stat().st_size > 1000


def test_the_block_of_a_model_card_runs(folder):
    model = caft.load_model("path/to/this/folder")
    own, _ = BLOCK.findall(model_card(Card(model, {}, None, {}, None)))  # test_hub has the other
    exec(own, {})
