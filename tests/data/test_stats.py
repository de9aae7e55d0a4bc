"""The page about a dataset: right sums, samples, and nothing in it that a list could run."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from mlflow import MlflowClient
from sources_support import image_bytes

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.dataset import open_dataset
from pipelines.data.reasons import REASONS
from pipelines.data.retry import retry
from pipelines.data.stage import run
from pipelines.data.stats import _texts, _warnings, _work, write_stats
from pipelines.data.stats_rejects import HOSTS_KEPT, _Hosts, read_rejects
from pipelines.data.stats_rows import sample_kept

HOSTILE = (
    "<script>alert(1)</script> A dog & a cat. </details></body> <img src=x onerror=alert(2)> run.",
    "\"'><svg onload=alert(3)> {{ 7 * 7 }} {% raw %} A bird. \u202egpj.exe &lt;b&gt; \x07",
)
ALLOWED_TAGS = re.compile(
    "html|head|meta|title|style|body|header|nav|h[123]|p|b|br|i|a|bdi|span|code|div|figure|img|"
    "figcaption|details|summary|ul|li|d[ltd]|table|thead|tbody|t[rhd]|svg|g|rect"
)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.pieces = [], [], []
        self.feed(text)
        self.text = "".join(self.pieces)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.pieces.append(data)


def page_of(folder) -> Page:
    return Page(Path(folder, "stats.html").read_text(encoding="utf-8"))


def test_every_reason_is_on_the_page_with_its_meaning_and_the_sums_are_right(dataset_folder):
    counts = open_dataset(dataset_folder).manifest["counts"]
    source = Path(dataset_folder, "stats.html").read_text(encoding="utf-8")
    text = " ".join(page_of(dataset_folder).text.split())
    assert f"{counts['kept']} of {counts['input_rows']} rows were kept" in text
    for reason in counts["rejected"]:
        assert html.escape(REASONS[reason].text, quote=False) in html.unescape(source)
    (table,) = re.findall(r'<table class="wide reasons">.*?</table>', source, re.DOTALL)
    rows = re.findall(r"<td>([\d,]+)</td><td>[\d.<%&lt;]+</td>", table)
    *parts, total = (int(number.replace(",", "")) for number in rows)
    assert sum(parts) == total == counts["input_rows"]
    assert len(parts) == 1 + len(counts["rejected"])


def test_the_page_loads_nothing_and_shows_samples(dataset_folder):
    page = page_of(dataset_folder)
    images = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(images) == 24
    assert all(re.match(r"data:image/(jpeg|png|webp);base64,", value) for value in images)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in Path(dataset_folder, "stats.html").read_text(encoding="utf-8")
    assert page.tags.count("svg") > 9


def test_the_page_is_an_artifact_of_the_mlflow_run(dataset_folder):
    manifest = open_dataset(dataset_folder).manifest
    client = MlflowClient(tracking_uri=manifest["config"]["tracking"]["uri"])
    names = [entry.path for entry in client.list_artifacts(manifest["mlflow_run_id"])]
    assert names == ["stats.html"]


def test_hosts_and_examples_of_failures(dataset_folder):
    counts = open_dataset(dataset_folder).manifest["counts"]["rejected"]
    rejected = read_rejects(open_dataset(dataset_folder))
    (host,) = rejected.hosts
    downloads = {r: n for r, n in counts.items() if REASONS[r].stage == "download"}
    assert host.host == "127.0.0.1"
    assert host.rows == rejected.downloads == sum(downloads.values())
    assert dict(host.reasons) == downloads
    assert rejected.hosts_exact
    assert {r: len(rows) for r, rows in rejected.examples.items()} == {
        reason: min(4, n) for reason, n in counts.items()
    }
    assert rejected.examples["bad_url"][0]["url"] == "ftp://example.org/a.jpg"


def test_more_hosts_than_are_held_are_said_to_be_inexact():
    hosts = _Hosts()
    for start in (0, 120_000):
        names = [f"host{n}.example" for n in range(start, start + 120_000)]
        urls = [
            f"https://user:word@{name}:8443/a.jpg" for name in ["often.example", *names, "[::1]"]
        ]
        urls += ["http://OFTEN.example?x", "s3://bucket/a.jpg"]
        columns = {"url": urls, "stage": "download", "reason": "dns", "detail": ""}
        hosts.add(pa.table({k: v if k == "url" else [v] * len(urls) for k, v in columns.items()}))
    assert not hosts.exact
    assert hosts.downloads == 2 * 120_003
    assert len(hosts.failures) == HOSTS_KEPT
    first, second = hosts.top(2)
    assert (first.host, first.rows) == ("often.example", 4)
    assert (second.host, second.rows) == ("[::1]", 2)


def test_a_large_dataset_is_sampled_from_all_its_parts(dataset_folder):
    dataset = open_dataset(dataset_folder)
    sampled = sample_kept(dataset, row_group_rows=16, most_rows=64)
    assert 32 <= sampled.rows <= 64
    assert len({row["source"] for row in sampled.gallery}) >= 3
    assert {chart.n for chart in sampled.histograms[:4]} == {sampled.rows}
    for chart in sampled.histograms:
        assert sum(bar.count for bar in chart.bars) == chart.n, chart.title
    everything = sample_kept(dataset, row_group_rows=16)
    assert everything.rows == dataset.rows


def test_hostile_captions_and_urls_stay_text(ray_cluster, make_data_config, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n, caption in enumerate(HOSTILE):
        (folder / f'{n}" onerror="alert(9)" <b>.png').write_bytes(image_bytes(n, 48))
        (folder / f'{n}" onerror="alert(9)" <b>.json').write_text(json.dumps({"text": caption}))
    listing = tmp_path / "list.csv"
    urls = [
        "javascript:alert(4)",
        "http://127.0.0.1:9/%22><script>alert(5)</script>",
        "http://127.0.0.1:9/a'onmouseover='alert(6).jpg",
        'https://<img src=x>"/x.jpg',
        "data:text/html,<script>alert(7)</script>",
    ]
    lines = [json.dumps({"url": url, "caption": "A dog. A cat runs."}) for url in urls]
    listing = tmp_path / "list.jsonl"
    listing.write_text("\n".join(lines) + "\n")
    config = make_data_config(str(tmp_path / "out <i>&amp;"), "filters.min_contrast=null")
    sources = (
        SourceConfig(name="<u>folder", path=str(folder), licence="<script>alert(8)</script>"),
        SourceConfig(name="list", path=str(listing)),
    )
    run(config.model_copy(update={"sources": sources}))
    page = page_of(config.output)
    assert [tag for tag in set(page.tags) if not ALLOWED_TAGS.fullmatch(tag)] == []
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] == "srcdoc"]
    for tag, name, value in page.attributes:
        if name == "href":
            assert tag == "a"
            assert value.startswith(("#", "http://", "https://"))
        if name == "src":
            assert tag == "img"
            assert value.startswith("data:image/")
    links = [value for tag, name, value in page.attributes if name == "rel"]
    assert links
    assert set(links) == {"noreferrer noopener nofollow"}
    for shown in ("<script>alert(1)</script>", "{{ 7 * 7 }}", "javascript:alert(4)", "<u>folder"):
        assert shown in page.text
    assert page.text.count("<script>alert(8)</script>") == 1


def test_texts_and_warnings_are_in_words():
    texts = {
        "captions": {"raw": 1200},
        "notes": {"entities": 3},
        "left_out": {"title": 7, "w": None},
        "scripts": {"Latin": 90, "Han": 10},
        "lengths": {"16": 60, "128": 39, "1024": 1},
        "captions_from": {
            "rows": 9,
            "joined": 5,
            "without_image": 3,
            "rejected": {"bad_row": 1},
            "images": 100,
            "images_joined": 4,
        },
        "sample": {"url": "u", "cells": [["raw", "A dog &amp;"]], "captions": []},
    }
    said = {
        "kept": 80,
        "input_rows": 100,
        "rejected": {"bad_row": 9, "bad_text": 6},
        "texts": texts,
        "work": {"rows": 300, "elapsed_s": 150.0, "task_s": 9000.0, "fetched_bytes": 5_000_000},
    }
    nothing = {"kept": 0, "input_rows": 5, "rejected": {"dns": 5}}
    assert _texts({"a": said, "old": nothing}) == {
        "a": {
            "captions": "raw (1,200)",
            "notes": "entities (3)",
            "left_out": "title (7), w",
            "scripts": "Latin (90), Han (10)",
            "lengths": "half up to 16, 95% up to 128, all up to 1,024",
            "joined": "9 rows = joined 5 + without an image 3 + rejected 1 (bad_row (1))",
            "sample": texts["sample"],
        }
    }
    assert _work({"a": said, "old": nothing}) == {"a": ["2 min", "2.5 h", "2.0", "5 MB"]}
    assert _warnings({"a": said, "old": nothing}) == [
        "a: 15.0% of its rows are broken (bad_row, bad_text)",
        "a: 4.0% of its images have a row in captions_from",
        "old: kept none of its 5 rows",
    ]


def test_the_page_may_go_elsewhere(dataset_folder, tmp_path, capsys):
    from pipelines.data.__main__ import main

    page = tmp_path / "pages" / "mine.html"
    assert main(["stats", dataset_folder, "--page", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert "rows were kept" in page.read_text(encoding="utf-8")
    assert main(["stats", str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_costs_no_dataset(
    ray_cluster, make_data_config, tmp_path, capfd
):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(image_bytes(0, 48))
    (tmp_path / "images" / "a.txt").write_text("A dog. A cat runs.")
    config = make_data_config(str(tmp_path / "out"))
    Path(config.output, "stats.html").mkdir(parents=True)
    source = SourceConfig(name="images", path=str(tmp_path / "images"))
    run(config.model_copy(update={"sources": (source,)}))
    assert open_dataset(config.output).rows == 1
    assert "stats.html: not written" in capfd.readouterr().err


def test_a_dataset_of_another_make_is_refused(dataset_folder, tmp_path):
    manifest = open_dataset(dataset_folder).manifest | {"files": [], "rejects": []}
    del manifest["counts"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest\.json: has no 'counts'"):
        write_stats(str(tmp_path))


def test_a_retry_writes_the_page_again(dataset_folder, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(dataset_folder, copy)
    (copy / "stats.html").unlink()
    retry(str(copy), ["http_4xx"])
    text = page_of(copy).text
    assert re.search(r"Retries\s*1", text)
    write_stats(str(copy))
    assert re.search(r"Retries\s*1", page_of(copy).text)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0.0%"), (1, "<0.01%"), (50_000, "5.0%"), (4_000, "0.40%")]
)
def test_small_shares_keep_their_digits(value, shown):
    from pipelines.data.stats import _share

    assert _share(value, 1_000_000) == shown
