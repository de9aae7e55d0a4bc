"""The pages: links and files exist, commands parse, names of keys are right, the site builds."""

import argparse
import html
import html.parser
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from caft.config import load_config
from pipelines.__main__ import COMMANDS as NAMED
from pipelines.data.config import DataConfig
from pipelines.data.reasons import REASONS
from pipelines.embed.config import EmbedConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.sets import SETS
from pipelines.prometheus import GAUGES, PREFIX
from pipelines.sweep.config import SweepConfig
from pipelines.train.config import TrainConfig
from pipelines.train.telemetry import METRICS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    file
    for pattern in ("*.md", "docs/*.md", "cluster/**/*.md", "benchmarks/**/*.md")
    for file in ROOT.glob(pattern)
)
# The test that runs a command for real; here commands are only parsed. `submit` starts every stage
# alike, so that one of them stands for all.
HOSTS = "cluster/test_hosts.py::test_a_chain_outlives_lost_machines_and_a_cut_cable"
SUBMIT = "submit/test_submit.py::test_a_chain_stops_at_what_fails_and_goes_on_from_there"
DETACH = "submit/test_submit.py::test_a_detached_job_runs_until_it_is_stopped"
REPORT = "evaluate/test_report.py::test_outputs_and_runs_give_the_same_comparison"
DESCRIBE = "test_describe.py::test_the_command_prints_the_table_and_one_line_errors"
SEARCH = "embed/test_search_page.py::test_the_commands_of_the_page"
STUDY = "sweep/test_study.py::test_a_study_survives_its_driver_and_ends_in_a_law"
RUN_BY = {
    "pipelines.data": "data/test_stage.py::test_a_killed_run_goes_on_and_ends_with_the_same_files",
    "pipelines.data estimate": "data/test_estimate.py::test_the_command_line",
    "pipelines.data verify": "data/test_verify.py::test_no_dataset_at_all",
    "pipelines.data retry": "data/test_retry.py::test_a_server_that_dies_for_a_while_costs_no_row",
    "pipelines.train": "train/test_stage.py::test_a_run_into_a_bucket",
    "pipelines.evaluate": HOSTS,
    "pipelines.evaluate compare": REPORT,
    "pipelines.embed": SEARCH,
    "pipelines.search": SEARCH,
    "pipelines.submit embed": SUBMIT,
    "pipelines.sweep plan": "sweep/test_plan.py::test_the_command_prints_and_stores_the_plan",
    "pipelines.sweep run": STUDY,
    "pipelines.sweep fit": STUDY,
    "pipelines.submit data": SUBMIT,
    "pipelines.submit train": SUBMIT,
    "pipelines.submit sweep": SUBMIT,
    "pipelines.submit chain": HOSTS,
    "pipelines.submit list": SUBMIT,
    "pipelines.submit status": SUBMIT,
    "pipelines.submit logs": SUBMIT,
    "pipelines.submit stop": DETACH,
    "caft.checkpoint convert": "test_checkpoint.py::test_a_converted_file_gives_the_same_numbers",
    "caft.checkpoint export": "test_export.py::test_an_export_loads_and_computes_as_its_checkpoint",
    "caft.checkpoint push": "test_hub.py::test_a_model_goes_to_the_hub_and_comes_back",
    "caft.checkpoint towers": "test_towers.py::test_clip_keeps_its_numbers",
    "caft.checkpoint mix": "test_fine_tuning.py::test_a_mixed_checkpoint_keeps_its_training",
    "caft.model describe": DESCRIBE,
    "caft.scaling_law": "scaling_law/test_command.py::test_the_table_is_printed",
}
ELSEWHERE = r"(?:docker|helm|kubectl|ssh|ray (?:up|down|dashboard)) "  # no test can have these
FOLDERS = "benchmarks|caft|cluster|configs|docs|pipelines|tests"
# A stage's schema, and a recipe to stand in where a page's own file is meant.
STAGES = {
    "pipelines.data": (DataConfig, "configs/data/demo.yaml"),
    "pipelines.train": (TrainConfig, "configs/train/caft_b_3m.yaml"),
    "pipelines.evaluate": (EvaluateConfig, "configs/evaluate/demo.yaml"),
    "pipelines.embed": (EmbedConfig, "configs/embed/images.yaml"),
    "pipelines.sweep": (SweepConfig, "configs/sweep/scenes.yaml"),
}


def blocks(page: Path) -> list[str]:
    """A page's code blocks."""
    return re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def lines_of(page: Path) -> list[str]:
    """Commands of a page's code blocks, continued lines joined, comments dropped."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s#\s.*|^#.*", "", line).strip() for line in lines]


def command_of(line: str) -> tuple[str, str] | None:
    """The module that a command line runs, and its arguments."""
    if match := re.search(r"python3? -m ((?:pipelines|caft)[\w.]*)(.*)", line):
        return match[1], match[2]
    match = re.match(r"caft (\w+)(.*)", line)
    command = NAMED.get(match[1]) if match else None
    if match is None or command is None or not command.module:
        return None
    return command.module, " ".join([*command.words, match[2]])


COMMANDS = [
    pytest.param(*found, id=f"{page.stem}: {line}")
    for page in PAGES
    for line in lines_of(page)
    if (found := command_of(line))
]


# Some of what the tables hold that are made from the code.
TABLES_SAY = {
    "data": REASONS,
    "benchmarks": SETS,
    "cluster": [f"{PREFIX}{name}" for name in GAUGES],
    "train": METRICS,
    "configuration": ["sources[].path", "filters.min_side_px", "optimizer.lr", "text.width"],
}


class Parsed(BaseException):
    """What a command understood, in the place of its work."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # of an earlier command
@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_every_command_parses_and_every_key_exists(module, arguments, monkeypatch):
    words = [w.replace("=...", "=/mine") for w in shlex.split(arguments) if w != "..."]

    def stopped(parse):
        def stop(parser, args=None, namespace=None):
            raise Parsed(parse(parser, args, namespace))

        return stop

    monkeypatch.chdir(ROOT)
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, stopped(parse))
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(Parsed) as caught:
        runpy.run_module(module, run_name="__main__")
    (understood,) = caught.value.args
    stage = STAGES.get(module)
    if stage is None or not hasattr(understood, "overrides"):
        return
    schema, stand_in = stage
    config = getattr(understood, "config", None)
    if config is None:  # `data retry` takes keys of the stored configuration
        config = stand_in
    elif config.startswith(("configs/", "cluster/")):
        assert Path(config).is_file() or Path(config).stem == "mine", config
    if not (ROOT / config).is_file():
        config = stand_in
    load_config(schema, ROOT / config, understood.overrides)


def test_every_command_is_run_by_a_test_or_says_what_it_needs():
    for command in COMMANDS:
        module, arguments = command.values
        word = (arguments.split() or [""])[0]
        place = RUN_BY[f"{module} {word}" if re.fullmatch("[a-z]+", word) else module]
        file, test = place.split("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), place
    for block in (block for page in PAGES for block in blocks(page)):
        if re.search(f"^{ELSEWHERE}", block, re.MULTILINE):
            assert "# needs " in block, block


def test_pages_have_commands():
    assert len(COMMANDS) > 30
    assert {command.values[0] for command in COMMANDS} >= set(STAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place) if place else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link
    for name in re.findall(rf"[`\s(]((?:{FOLDERS})/[\w./*-]*[\w*])(?![\w{{/*])", text):
        if not re.search(r"\b(NAME|mine|my_model)\b", name):
            assert list(ROOT.glob(name)), name
    for module in re.findall(r"python -m ((?:pipelines|caft)[\w.]*\w)", text):
        assert importlib.util.find_spec(module), module


def anchors(page: Path) -> set[str]:
    """Names of a page's headings as links spell them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", t.lower()).strip().replace(" ", "-") for t in titles}


def test_sizes_on_the_page_about_reproduction_are_those_of_the_recipes():
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+) \| .* \| `(.*)` \| `(.*)` \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for pairs, data, train in rows:
        assert f"{pairs} pairs" in (ROOT / train).read_text(encoding="utf-8").splitlines()[0]
        dataset = load_config(TrainConfig, ROOT / train).dataset
        assert load_config(DataConfig, ROOT / data).output == dataset


def test_what_the_page_about_symptoms_quotes_is_what_the_code_says():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([a-z][^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 7
    files = [f for folder in ("caft", "pipelines") for f in (ROOT / folder).rglob("*.py")]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    for said in quoted:
        assert said in code, said


class Addresses(html.parser.HTMLParser):
    """What a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        place = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.loaded.append(place.get("src") or "")
        elif tag == "link" and place.get("rel") != "canonical":
            self.loaded.append(place.get("href") or "")


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="needs pip install -e .[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for page in ROOT.glob("docs/*.md"):
        text = (tmp_path / f"{page.stem}.html").read_text(encoding="utf-8")
        assert not [place for place in Addresses(text).loaded if re.match(r"(https?:)?//", place)]
        assert "table:" not in text, page
    for page, said in TABLES_SAY.items():
        text = html.unescape((tmp_path / f"{page}.html").read_text(encoding="utf-8"))
        assert not [name for name in said if f"<code>{name}</code>" not in text], page
    interface = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in (
        "caft.create_model",
        "caft.losses.caft_loss",
        "caft.CAFT.encode_image",
        "caft.heat_maps.localize",
    ):
        assert f'id="{name}"' in interface
