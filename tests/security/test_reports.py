"""Names and numbers of runs cannot become markup in the page about scaling laws."""

import csv
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scaling_law_coverage import STUDIES

from caft.scaling_law.__main__ import main

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }}'
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "nav", "h1", "h2", "h3", "p", "b",
    "i", "span", "code", "div", "figure", "figcaption", "ul", "li", "dl", "dt", "dd", "table",
    "thead", "tbody", "tr", "td", "th", "svg", "g", "path", "text", "circle", "rect", "details",
    "summary",
}  # fmt: skip


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """The page about runs whose columns and cells hold markup."""
    folder = tmp_path_factory.mktemp("law")
    inputs, error = STUDIES["size_samples"].runs(seed=0)
    names = (f"family {HOSTILE}", f"flops {HOSTILE}", f"error {HOSTILE}", f"group {HOSTILE}")
    with open(folder / "runs.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for run, (n, d) in enumerate(zip(inputs["parameters"], inputs["samples"], strict=True)):
            writer.writerow([f"caft {HOSTILE}", 6 * n * d, error[run], f"{run % 3}{HOSTILE}"])
    family, compute, target, group = names
    arguments = [str(folder / "runs.csv"), "--family", family, "--compute", compute]
    arguments += ["--error", target, "--group", group, "--replicates", "20"]
    assert main([*arguments, "--output", str(folder)]) == 0
    return Path(folder, "fit.html").read_text(encoding="utf-8")


def test_the_page_about_laws_holds_no_foreign_markup(page):
    read = Page(page)
    assert read.tags <= ALLOWED
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert not {"src", "href", "srcdoc", "xlink:href"} & {name for name, _ in read.attributes}
    assert "url(" not in page
    assert "@import" not in page
    assert HOSTILE in read.text
    assert any("default-src 'none'" in (value or "") for _, value in read.attributes)
