"""The report and the comparison: right numbers, real mistakes, and nothing that runs or loads."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from ranking_support import ranking_of

import caft
from caft.captions import even_chunks
from pipelines.evaluate import compare
from pipelines.evaluate.outputs import read_output
from pipelines.evaluate.report.mistakes import caption_mistakes, image_mistakes
from pipelines.evaluate.report.page import Evaluated, comparison_page, report_page

ALLOWED_TAGS = re.compile(
    "html|head|meta|title|style|body|header|nav|h[1234]|p|b|i|a|br|bdi|span|small|div|figure|img|"
    "figcaption|[uo]l|li|d[ltd]|table|thead|tbody|t[rhd]|svg|line|text|polyline|circle"
)
VOID = ("meta", "img", "br", "line", "polyline")


class Page(HTMLParser):
    """Tags, attributes and text of a page, and its tables as rows of the words in each cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.pieces, self.rows, self.open = [], [], [], [], []
        self.feed(text)
        self.text = " ".join("".join(self.pieces).split())
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.pieces.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += f"{data} " if "small" in self.open else data

    def row(self, *start):
        return next(row for row in self.rows if tuple(row[: len(start)]) == start)


@pytest.fixture(scope="module")
def report(small_evaluation):
    folder = small_evaluation.output / "step-00000020"
    return read_output(str(folder)), (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def scores(small_evaluation, report):
    """Blended scores (images, captions) of the later checkpoint, without the stage."""
    benchmark, model = small_evaluation.benchmark, caft.load_model(report[0].results["checkpoint"])
    rows = [row for piece in benchmark.pieces for row in benchmark.rows.read(piece)]
    with torch.inference_mode():
        images = model.encode_image(torch.stack([model.preprocess(r["image"]) for r in rows]))
        chunks = [c for sentences in benchmark.sentences for c in even_chunks(sentences, 4)]
        texts = model.encode_text(model.tokenize(chunks).view(len(rows), 4, -1))
        return model.score(images, texts, 0.3)


def per_cent(value):
    return f"{100 * value:.1f}"


def test_recalls_and_intervals_are_those_of_the_metrics(report):
    numbers, page = report[0].results["benchmarks"]["dci"], Page(report[1])
    for score, start in (
        ("whole", ("dci", "Whole caption")),
        ("blended", ("", "Blended with parts")),
        ("rerank", ("", "Reranked")),
    ):
        cells = page.row(*start)[2:]
        for n, way in enumerate(("t2i", "i2t")):
            for k, cell in zip((1, 5, 10), cells[4 * n :], strict=False):
                name = f"{score}_{way}_r{k}"
                low, high = numbers["intervals"][name]
                expected = f"{per_cent(numbers[name])}{per_cent(low)}–{per_cent(high)}"
                assert cell.strip() == expected, name


def test_published_numbers_stand_beside_with_their_difference(report):
    ours = 100 * report[0].results["benchmarks"]["dci"]["blended_t2i_r1"]
    page = Page(report[1])
    head = page.row("Benchmark", "Measure", "This model")
    row = next(row for row in page.rows if len(row) == len(head) and row[1] == "Text → image R@1")
    cell = row[head.index("CAFT-30M")].strip()
    assert cell == f"72.4{ours - 72.4:+.1f}".replace("-", "−")
    assert "published on 7,805" in row[0]  # another size: it does not compare


def test_changed_captions_and_curves_are_those_of_the_metrics(report):
    numbers, page = report[0].results["benchmarks"]["dci"], Page(report[1])
    for variant, name in (
        ("first_sentence_dropped", "First sentence dropped"),
        ("noisy_1", "100% of sentences from other images"),
    ):
        recall = numbers["controls"][variant]["t2i_r1"]
        more = f"{100 * (recall - numbers['blended_t2i_r1']):+.1f}".replace("-", "−")
        assert page.row(name)[1].strip() == f"{per_cent(recall)}{more}"
    for group in numbers["lengths"]["tokens"]:
        assert f"≤{group['high']:.0f}" in page.text
        said = f"Text → image R@1: {per_cent(group['t2i_r1'])}%, {group['texts']:.0f} captions of "
        assert f"{said}{group['low']:.0f} to {group['high']:.0f}" in page.text
    for alpha, recall in numbers["alphas"].items():
        said = f"Image → text R@1: {per_cent(recall['i2t_r1'])}%, α {float(alpha):g}"
        assert said in page.text


def test_mistakes_are_the_most_confident_ones(report, scores, small_evaluation):
    benchmark = small_evaluation.benchmark
    shown = report[0].examples["benchmarks"]["dci"]
    right = scores.diagonal()
    others = scores - torch.diag(torch.full((len(scores),), torch.inf))
    for way, wrong in (("t2i", others.amax(dim=0)), ("i2t", others.amax(dim=1))):
        lead = wrong - right
        assert shown[way]["total"] == int((lead >= 0).sum())
        assert shown[way]["queries"] == len(scores)
        order = lead.argsort(descending=True)[:4].tolist()
        found = shown[way]["shown"]
        leads = [mistake["lead"] for mistake in found]
        assert leads == pytest.approx(lead[order].tolist(), abs=1e-4)
        for query, mistake in zip(order, found, strict=True):
            column = scores[:, query] if way == "t2i" else scores[query]
            best = int(column.argmax())
            picture = mistake["own"] if way == "t2i" else mistake
            assert picture["url"] == benchmark.urls[query]
            assert mistake["rank"] == 1 + int((column >= right[query]).sum()) - 1
            assert mistake["own_score"] == pytest.approx(right[query].item(), abs=1e-4)
            assert mistake["found"][0]["score"] == pytest.approx(column[best].item(), abs=1e-4)
            assert not mistake["found"][0]["right"]
            if way == "t2i":
                assert mistake["found"][0]["url"] == benchmark.urls[best]
                assert mistake["caption"].startswith(". ".join(benchmark.sentences[query][:3]))
            else:
                assert mistake["found"][0]["caption"].startswith(
                    ". ".join(benchmark.sentences[best][:3])
                )
    text = Page(report[1]).text
    total = shown["t2i"]["total"]
    assert f"{total} of {len(scores)} captions rank a wrong image first" in text
    assert "the 4 in which the wrong one's score leads by most are shown" in text


@given(st.integers(2, 12), st.integers(0, 2**31))
def test_ties_are_mistakes_of_no_lead(count, seed):
    scores = torch.randint(0, 3, (count, count), generator=torch.Generator().manual_seed(seed))
    ranking = ranking_of(scores, range(count))
    for mistakes, matrix in (
        (caption_mistakes(ranking, count), scores.T),
        (image_mistakes(ranking, count), scores),
    ):
        own = matrix.diagonal()
        lead = (matrix - torch.diag(torch.full((count,), 99))).amax(dim=1) - own
        assert mistakes.total == len(mistakes.shown) == int((lead >= 0).sum())
        assert [m.lead for m in mistakes.shown] == sorted(lead[lead >= 0].tolist(), reverse=True)
        assert all(m.lead == lead[m.query] for m in mistakes.shown)


def test_heat_maps_come_with_the_sentences_and_their_number(report):
    anatomies = report[0].examples["benchmarks"]["dci"]["anatomies"]
    assert [len(anatomy["heats"]) for anatomy in anatomies] == [3, 3]
    page = Page(report[1])
    for anatomy in anatomies:
        assert f"3 of {anatomy['sentences']} sentences." in page.text
        assert all(heat["text"] in page.text for heat in anatomy["heats"])
    assert "2 of 16 images, evenly spaced" in page.text


def check_inert(page):
    """No tag, attribute or address in a page but those that its templates write."""
    assert all(ALLOWED_TAGS.fullmatch(tag) for tag in page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("srcset", "action", "formaction", "xlink:href", "background")
        if name == "src":
            assert value.startswith("data:image/webp;base64,")
        if name == "href":
            assert value.startswith("#")
        if name == "style":
            assert re.fullmatch(r"background: var\(--c\d\)", value)
    policy = dict(
        pair[1:] for pair in page.attributes if pair[0] == "meta" and pair[1] == "content"
    )
    assert policy
    assert any("default-src 'none'" in value for _, _, value in page.attributes if value)


def test_captions_urls_and_names_are_text_and_nothing_is_loaded(report, small_evaluation):
    evaluated, written = report
    name = '"><script>alert(6)</script><img src=http://127.0.0.1/x>'
    results = evaluated.results | {
        **dict.fromkeys(("model", "label", "series", "checkpoint", "mlflow_run_id"), name),
        "links": {name: name},
    }
    hostile = Evaluated(results, json.loads(json.dumps(evaluated.examples)))
    comparison = (small_evaluation.output / "comparison.html").read_text()
    drawn = [report_page(hostile), comparison_page([hostile, evaluated, hostile])]
    for html in (written, comparison, *drawn):
        check_inert(Page(html))
        assert "url(" not in html
        assert "@import" not in html
    for html in drawn:
        assert name in Page(html).text
    page = Page(written)
    for sentence in small_evaluation.benchmark.sentences[0][:2]:
        assert sentence in page.text
    shown = evaluated.examples["benchmarks"]["dci"]
    urls = [mistake["own"]["url"] for mistake in shown["t2i"]["shown"]]
    urls += [anatomy["url"] for anatomy in shown["anatomies"]]
    assert all(url in page.text for url in urls)
    assert all("<b onclick" in url for url in urls)


def test_runs_are_links_where_a_browser_finds_them(report):
    evaluated, _ = report
    run = evaluated.results["mlflow_run_id"]
    address = f"https://mlflow.invalid/#/experiments/1/runs/{run}"
    for page, expected in ((address, [address]), ("javascript:alert(1)", [])):
        results = evaluated.results | {"run_pages": {run: page}}
        written = Page(report_page(Evaluated(results, evaluated.examples)))
        links = [value for tag, name, value in written.attributes if (tag, name) == ("a", "href")]
        assert [link for link in links if not link.startswith("#")] == expected
        assert run in written.text


def test_few_images_are_said_to_be_few_and_the_page_says_what_to_do_next(report):
    evaluated, written = report
    images = evaluated.results["benchmarks"]["dci"]["images"]
    assert images < 100
    text = Page(written).text
    assert f"dci has {images:g} images, too few to tell how good a model is" in text
    assert f"caft export {evaluated.results['checkpoint']}" in text


def test_another_model_has_a_report_without_segments(small_evaluation):
    folder = small_evaluation.output / small_evaluation.labels[2]
    page = Page((folder / "report.html").read_text())
    numbers = json.loads((folder / "metrics.json").read_text())["benchmarks"]["dci"]
    cell = page.row("dci", "Whole caption")[2]
    assert cell.startswith(per_cent(numbers["whole_t2i_r1"]))
    assert "superpixels" not in page.text
    assert "most confident mistakes" in page.text


def test_a_comparison_has_each_evaluation_and_its_difference(small_evaluation):
    found = [read_output(str(small_evaluation.output / label)) for label in small_evaluation.labels]
    page = Page((small_evaluation.output / "comparison.html").read_text())
    first = found[0].results["benchmarks"]["dci"]
    for label, evaluated in zip(
        ("caft_xs, step 10", "caft_xs, step 20", "colours, step 0"), found, strict=True
    ):
        results = evaluated.results
        value = results["benchmarks"]["dci"][f"{results['score']}_t2i_r1"]
        assert page.row(label)[1].startswith(per_cent(value))
    second = found[1].results["benchmarks"]["dci"]
    more = f"{100 * (second['miou'] - first['miou']):+.1f}".replace("-", "−")
    assert page.row("caft_xs, step 20")[3].strip() == f"{per_cent(second['miou'])}{more}"
    assert page.row("CAFT-30M, published")[1] == "72.4"
    for step, numbers in ((10, first), (20, second)):  # the curve over training
        assert f"caft_xs: {per_cent(numbers['miou'])}%, step {step}" in page.text
    heats = found[0].examples["benchmarks"]["dci"]["anatomies"][0]["heats"]
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert heats[0]["src"] in sources


def test_outputs_and_runs_give_the_same_comparison(small_evaluation, tmp_path, capsys):
    evaluation = small_evaluation
    runs = {
        json.loads((evaluation.output / label / "metrics.json").read_text())["mlflow_run_id"]: None
        for label in evaluation.labels
    }
    assert len(runs) == 2
    outputs = [str(evaluation.output / label) for label in evaluation.labels]
    tracking = ["--tracking", f"uri={evaluation.tracking.uri}"]
    for name, evaluations in (("outputs", outputs), ("runs", list(runs))):
        page = tmp_path / f"{name}.html"
        assert compare.main(["--page", str(page), *evaluations, *tracking]) == 0
        assert capsys.readouterr().out == f"{page}\n"
    assert (tmp_path / "outputs.html").read_text() == (tmp_path / "runs.html").read_text()
    assert (tmp_path / "runs.html").read_text() == (
        evaluation.output / "comparison.html"
    ).read_text()
    both = tmp_path / "both.html"
    assert compare.main([outputs[2], str(evaluation.output), "--page", str(both)]) == 0
    assert "4 evaluations side by side" in both.read_text()


def test_what_cannot_be_compared_is_one_line(small_evaluation, tmp_path, capsys):
    client = MlflowClient(small_evaluation.tracking.uri)
    other = client.create_experiment("other")
    stray = client.create_run(other).info.run_id
    caft_experiment = client.get_experiment_by_name("caft").experiment_id
    bare = client.create_run(caft_experiment).info.run_id
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.json").write_text('{"model": "x"}')
    (tmp_path / "old" / "examples.json").write_text("{}")
    tracking = ["--tracking", f"uri={small_evaluation.tracking.uri}"]
    for name, said in (
        (str(tmp_path), "DataError"),
        (str(tmp_path / "nowhere"), "so no finished evaluation"),
        (str(tmp_path / "old"), "has no 'label'"),
        ("0" * 32, "ConfigError: tracking.uri"),
        (stray, "'caft' has no run"),
        (bare, "no finished run of the evaluate stage"),
    ):
        page = tmp_path / "page.html"
        assert compare.main([name, "--page", str(page), *tracking]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not page.exists()


def test_other_data_is_said(report):
    evaluated = report[0]
    data = evaluated.results["datasets"]["dci"] | {"fingerprint": "another"}
    other = Evaluated(evaluated.results | {"datasets": {"dci": data}}, evaluated.examples)
    assert "Not the same data." in comparison_page([evaluated, other])
    assert "Not the same data." not in comparison_page([evaluated, evaluated])


@pytest.mark.parametrize(("runs", "drawn"), [(1, 8), (3, 3)])
def test_many_evaluations_are_all_in_tables_and_a_few_are_drawn(report, runs, drawn):
    evaluated = report[0]
    many = [
        Evaluated(evaluated.results | {"step": n, "series": str(n % runs)}, evaluated.examples)
        for n in range(20)
    ]
    page = Page(comparison_page(many))
    for n in range(20):
        assert page.row(f"caft_xs, step {n}")
    assert f"Of 20 evaluations {drawn} are drawn" in page.text
    assert len(page.row("Captions", "caft_xs, step 0" if runs == 1 else "caft_xs, step 17")) == (
        1 + drawn
    )


def test_numbers_of_another_kind_are_shown_as_they_are(report):
    evaluated = report[0]
    benchmarks = evaluated.results["benchmarks"] | {
        "classes": {"images": 50.0, "top_1": 0.425, "classes": 10.0},
        "refcoco-testA": {"images": 750.0, "miou": 0.25},
    }
    datasets = dict.fromkeys(benchmarks, evaluated.results["datasets"]["dci"])
    results = evaluated.results | {"benchmarks": benchmarks, "datasets": datasets}
    other = Evaluated(results, evaluated.examples)
    page = Page(report_page(other))
    assert page.row("classes", "top 1")[2] == "42.5%"
    assert page.row("", "classes")[2] == "10"
    row = page.row("refcoco-testA", "mIoU")
    assert row[2] == "25.0"
    assert row[page.row("Benchmark", "Measure", "This model").index("CAFT")].strip() == "30.8−5.8"
    assert "refcoco-testA" in Page(comparison_page([evaluated, other])).text
