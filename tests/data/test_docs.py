"""The data stage's page and recipes: what they say is what the code has."""

import re
from pathlib import Path

import pytest
import yaml

from caft.config import load_config, validate
from pipelines.data.__main__ import COMMANDS
from pipelines.data.config import DataConfig, SourceConfig, SourceKind
from pipelines.data.dedup.pairs import choose_bands

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
COSTS = (ROOT / "docs" / "data_costs.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "configs" / "data").glob("*.yaml"))


def section(title: str, page: str = PAGE) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(text: str) -> list[list[str]]:
    """The cells of the lines of all tables, heads included."""
    lines = [line for line in text.splitlines() if re.match(r"\| [^-]", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_has_every_kind_of_source_and_every_command():
    kinds = {row[0].strip("`") for row in table(section("Sources"))}
    assert set(SourceKind.__args__) - {"auto"} <= kinds
    commands = {row[0].strip("`").split()[0] for row in table(section("Commands"))}
    assert set(COMMANDS) <= commands


def test_the_pages_examples_are_valid():
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) >= 5
    source = {"name": "a", "path": "a.csv"}
    for example in examples:
        parsed = yaml.safe_load(example)
        if set(parsed) <= set(SourceConfig.model_fields):
            parsed = {"sources": [source | parsed]}
        validate(DataConfig, {"sources": [source], "output": "/out"} | parsed, source="data.md")


def test_the_pages_bands_are_those_that_are_chosen():
    _, *rows = table(section("Duplicates: what they cost", COSTS))
    for distance, bands, _ in rows:
        assert int(bands.replace(",", "")) == len(choose_bands(30_000_000, int(distance)))


def test_links_within_the_page_lead_somewhere():
    for page in (PAGE, COSTS):
        titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= anchors
        for file in re.findall(r"\]\(([a-z_]+\.md)\)", page):
            assert (ROOT / "docs" / file).exists()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(recipe):
    config = load_config(DataConfig, recipe)
    assert config.sources
    # What a recipe proposes in comments must load as well.
    proposed = re.sub(
        r"^# (?=(decontamination|superpixels|  )\b|  )", "", recipe.read_text(), flags=re.M
    )
    if proposed != recipe.read_text():
        full = validate(DataConfig, yaml.safe_load(proposed), source=str(recipe))
        assert full.decontamination.sets
        assert full.superpixels is not None


def test_recipes_feed_the_training_recipes():
    outputs = {load_config(DataConfig, recipe).output for recipe in RECIPES}
    for recipe in (ROOT / "configs" / "train").glob("caft_b_*.yaml"):
        (dataset,) = re.findall(r"^dataset: (.*)$", recipe.read_text(), re.MULTILINE)
        assert dataset in outputs
