"""Metrics of stages on a cluster's endpoint, and a dashboard that asks for none but real ones."""

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels
from ray.util.metrics import Gauge

from pipelines.data.dataset import open_dataset
from pipelines.prometheus import GAUGES, OF_TRAINING, PREFIX, report_rows, report_training

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "cluster" / "grafana" / "caft.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
DATA = f"{PREFIX}caft_data_rows"
Endpoint = dict[tuple[str, str, str], float]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def scraped(port: int) -> Endpoint:
    """This project's values on a node's endpoint: name, run and outcome -> value."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    found = {}
    for name, labels, value in re.findall(r"^(ray_caft_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[name, pairs["run"], pairs.get("outcome", "")] = float(value)
    return found


def test_what_stages_report_stays_on_the_endpoint_of_their_node(ray_cluster, dataset_folder):
    (node,) = ray.nodes()
    forgotten = (f"{PREFIX}caft_set_once", "mine", "")
    Gauge("caft_set_once", "what Ray forgets", ("run",)).set(1.0, {"run": "mine"})
    report_rows("mine", 5, {"dns": 2})
    report_rows("mine", 7, {"dns": 2, "timeout": 1})
    metrics = {name: 1.5 + n for n, name in enumerate(OF_TRAINING)}
    report_training("run1", metrics)
    report_training("run1", {"loss/total": float("nan")})
    expected = {
        (DATA, "mine", outcome): rows
        for outcome, rows in {"kept": 7, "dns": 2, "timeout": 1}.items()
    } | {(f"{PREFIX}{OF_TRAINING[name]}", "run1", ""): value for name, value in metrics.items()}

    def until(shown: Callable[[Endpoint], bool]) -> Endpoint:
        deadline = time.monotonic() + 60  # Ray collects every ten seconds
        while not shown(found := scraped(node["MetricsExportPort"])):
            assert time.monotonic() < deadline, found
            time.sleep(1)
        return found

    until(lambda found: forgotten in found and expected.items() <= found.items())
    found = until(lambda found: forgotten not in found)
    assert expected.items() <= found.items()
    name, counts = Path(dataset_folder).name, open_dataset(dataset_folder).manifest["counts"]
    rows = {o: rows for (metric, run, o), rows in found.items() if (metric, run) == (DATA, name)}
    assert sum(rows.values()) == counts["input_rows"]
    assert counts["rejected"].keys() - rows.keys() <= {"near_duplicate", "duplicate_image"}


def test_the_dashboard_asks_for_no_metric_that_is_not_there():
    own = {f"{PREFIX}{name}" for name in GAUGES}
    of_ray = Path(default_dashboard_panels.__file__).read_text(encoding="utf-8")
    asked = {name for expr in EXPRESSIONS for name in re.findall(r"\bray_\w+", expr)}
    assert own <= asked
    for name in asked - own:
        assert re.search(rf"\b{name}\b", of_ray), name


def test_the_dashboard_is_whole():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used == variables
    for panel in PANELS:
        assert panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for expr in EXPRESSIONS:
        for opened, closed in ("()", "{}", "[]"):
            assert expr.count(opened) == expr.count(closed), expr
        labels = {label for name in GAUGES for label in GAUGES[name].labels}
        if f"{PREFIX}caft_" in expr:
            assert set(re.findall(r"(\w+)=~?\"", expr)) <= labels


@pytest.mark.parametrize("name", OF_TRAINING.values())
def test_every_training_metric_has_its_gauge(name):
    assert name in GAUGES
