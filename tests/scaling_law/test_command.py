"""The command line: a CSV of runs in; a table, JSON, CSV and one HTML page out; clear errors."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scaling_law_coverage import STUDIES

from caft.scaling_law.__main__ import main
from caft.scaling_law.figures import log_ticks, number

HEADER = ("family", "seed", "batch", "flops", "n", "d", "t2i_r1", "whole_loss")
NAMED = ("--family", "family", "--compute", "flops", "--replicates", "60")


def make_runs(families: Sequence[str] = ("caft", "clip<b>16")) -> list[list[object]]:
    """36 runs a family of the law in size and samples; the second family is 10% worse."""
    study = STUDIES["size_samples"]
    rows: list[list[object]] = []
    for place, family in enumerate(families):
        inputs, error = study.runs(seed=place)
        error = error * 1.1**place / 2
        for run, (n, d) in enumerate(zip(inputs["parameters"], inputs["samples"], strict=True)):
            score, loss = 1 - error[run], 10 * error[run]
            rows.append([family, run % 3, 256, 6 * n * d, n, d, score, loss])
    return rows


def write_runs(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("law")
    runs = write_runs(folder / "runs.csv", make_runs())
    arguments = [str(runs), *NAMED, "--group", "seed", "--parameters", "n", "--samples", "d"]
    more = ["--score", "t2i_r1", "--error", "whole_loss", "--batch-size", "batch"]
    more += ["--forms", "power", "size_samples"]
    assert main([*arguments, *more, "--budget", "1e19", "1e20", "--output", str(folder)]) == 0
    return folder


def test_json_has_laws_predictions_and_advice(output: Path) -> None:
    record = json.loads((output / "fit.json").read_text())
    assert [study["target"] for study in record["studies"]] == ["whole_loss", "1 - t2i_r1"]
    study = record["studies"][1]
    law = next(law for law in study["laws"] if law["in"] == "size" and law["family"] == "caft")
    exponent = law["parameters"]["b"]
    assert exponent["identified"]
    assert exponent["low"] < 0.35 < exponent["high"]
    assert len(law["points"]["residual"]) == 36
    optimum = [n for n in study["numbers"] if n["kind"] == "optimum" and n["name"] == "parameters"]
    assert [n["at"] for n in optimum if n["family"] == "caft"] == [1e19, 1e20]
    predictions = [n for n in study["numbers"] if n["kind"] == "prediction"]
    assert all(n["low"] < n["value"] < n["high"] for n in predictions)
    held_out = [n for n in study["numbers"] if n["kind"] == "held out" and n["measured"]]
    assert held_out
    multiple = [n for n in study["numbers"] if n["name"].startswith("times its compute")]
    assert multiple[0]["value"] > 1


def test_csv_has_every_number_of_the_json(output: Path) -> None:
    with (output / "fit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    record = json.loads((output / "fit.json").read_text())
    numbers = sum(len(study["numbers"]) for study in record["studies"])
    parameters = sum(len(law["parameters"]) for s in record["studies"] for law in s["laws"])
    assert len(rows) == numbers + parameters


def test_the_page_stands_alone_and_draws_every_run(output: Path) -> None:
    page = (output / "fit.html").read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert not re.search(r'(src|href)="', page)
    assert "clip<b>16" not in page
    assert "clip&lt;b&gt;16" in page
    figures = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]
    # Of two errors: in compute, and in size and at equal compute for each family.
    assert len(figures) == 10
    dots = len(figures[0].findall("{*}circle"))
    envelopes = sum(
        len(law["points"]["error"])
        for law in json.loads((output / "fit.json").read_text())["studies"][0]["laws"]
        if law["in"] == "compute"
    )
    assert dots == 72 + envelopes  # every run, and the residuals of those fitted
    colours = {dot.get("fill") for dot in figures[1].findall("{*}circle")}
    assert len(colours) == 6  # one for each size


def test_the_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_runs(tmp_path / "runs.csv", make_runs(["caft"]))
    arguments = [str(runs), *NAMED, "--score", "t2i_r1", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"caft +power +a +0\.\d+ +0\.\d+ to 0\.\d+", printed)
    assert "prediction: 1 - t2i_r1" in printed
    assert re.match(
        r"1 - t2i_r1: caft: \w+ (holds|is doubtful) over 4\.\d decades, predicts", printed
    )


def test_an_unidentified_parameter_is_never_printed_as_a_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compute = np.geomspace(1e18, 1e21, 16)
    error = 30 * compute**-0.1 * np.exp(0.01 * np.random.default_rng(0).normal(size=16))
    path = tmp_path / "runs.csv"
    lines = [f"{c:g},{e:g}" for c, e in zip(compute, error, strict=True)]
    path.write_text("c,e\n" + "\n".join(lines))
    arguments = ["--compute", "c", "--error", "e", "--forms", "saturating", "--bins", "0"]
    assert main([str(path), *arguments, "--output", str(tmp_path)]) == 0
    floor = re.search(r"saturating +E +(.*)", capsys.readouterr().out)
    assert floor
    assert re.fullmatch(r"\S+ to 0\.\d+ +not identified: not told apart from zero", floor[1])
    law = json.loads((tmp_path / "fit.json").read_text())["studies"][0]["laws"][0]
    assert law["parameters"]["E"]["value"] is None


def change(row: int, column: str, value: object) -> list[list[object]]:
    rows = make_runs(["caft"])
    rows[row][HEADER.index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (change(3, "t2i_r1", "high"), ["--score", "t2i_r1"], "line 5: t2i_r1 is 'high', not a n"),
        (change(3, "t2i_r1", 61.2), ["--score", "t2i_r1"], "line 5: t2i_r1 is 61.2.*not in per ce"),
        (change(0, "flops", -1), ["--score", "t2i_r1"], "line 2: flops is -1"),
        (
            change(3, "batch", 512),
            ["--error", "whole_loss", "--batch-size", "batch"],
            "whole_loss of runs with batch sizes 256, 512.*fit one size at a time",
        ),
        (make_runs(["caft"])[:1], ["--score", "t2i_r1"], "caft: no law in compute: 1 point to fit"),
        (
            [*make_runs(["caft"]), make_runs(["caft"])[7]],
            ["--score", "t2i_r1"],
            "line 38: the same run as line 9",
        ),
        ([], ["--score", "t2i_r1"], "no runs in it"),
        ([["caft", 1]], ["--score", "t2i_r1"], "line 2: not as many cells"),
        (make_runs(["caft"]), ["--score", "r1"], "no column r1; it has family, seed"),
        (make_runs(["caft"]), [], "nothing to explain: name columns by --error or --score"),
        (make_runs(["caft"]), ["--score", "t2i_r1", "--forms", "cubic"], "forms: cubic is none"),
        (make_runs(["caft"]), ["--score", "t2i_r1", "--budget", "-1"], r"\[-1.0\] to predict at"),
    ],
)
def test_bad_input_is_one_line(
    rows: Sequence[Sequence[object]],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = write_runs(tmp_path / "runs.csv", rows)
    assert main([str(runs), *NAMED, *arguments, "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert re.search(message, printed)
    assert not (tmp_path / "out").exists()


def test_mixed_batch_sizes_do_not_matter_to_a_score(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs.csv", change(3, "batch", 512))
    arguments = ["--score", "t2i_r1", "--batch-size", "batch", "--output", str(tmp_path)]
    arguments += ["--forms", "power"]
    assert main([str(runs), *NAMED, *arguments]) == 0


def test_a_missing_file_and_a_folder_that_cannot_be_written_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*NAMED, "--score", "t2i_r1", "--output"]
    assert main([str(tmp_path / "none.csv"), *arguments, str(tmp_path)]) == 2
    assert "none.csv: not a table of runs" in capsys.readouterr().err
    runs = write_runs(tmp_path / "runs.csv", make_runs(["caft"]))
    assert main([str(runs), *arguments, str(runs / "out")]) == 2
    assert "give another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "high"), [(1e9, 4e10), (0.21, 0.49), (0.3, 0.31), (1e10, 1e30), (0.9, 1.1)]
)
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 10
    assert all(low <= tick <= high for tick in ticks)


def test_numbers_read_well() -> None:
    assert [number(value) for value in (0.1234567, 1e18, 2.5e20, 0.0, np.inf, 12345.0)] == [
        "0.1235",
        "10¹⁸",
        "2.5×10²⁰",
        "0",
        "inf",
        "1.23×10⁴",
    ]


FRONT = np.geomspace(1e18, 1e21, 10)


def front_rows(family: str = "caft", factor: float = 1.0) -> list[list[object]]:
    noise = np.exp(0.003 * np.random.default_rng(len(family)).normal(size=10))
    error = factor * 30 * FRONT**-0.1 * noise
    return [[family, 0, 256, c, c / 1e9, 1e9, 1 - e, e] for c, e in zip(FRONT, error, strict=True)]


def run_command(path: Path, *arguments: str) -> int:
    given = [str(path), *NAMED, "--score", "t2i_r1", "--forms", "power", *arguments]
    return main([*given, "--output", str(path.parent / "out")])


def test_parquet_and_gzipped_csv_are_read_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = front_rows()
    plain = write_runs(tmp_path / "runs.csv", rows)
    packed = tmp_path / "runs.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    columns = dict(zip(HEADER, map(list, zip(*rows, strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "runs.parquet")
    printed = []
    for path in (plain, packed, tmp_path / "runs.parquet"):
        assert run_command(path) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]


def test_a_condition_the_best_rate_and_odd_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*front_rows(), *front_rows("other")]
    rows[0][6], rows[9][6], rows[4][6] = 0.0, 1.0, ""
    worse = [*rows[2]]
    worse[2], worse[6] = 512, float(worse[6]) / 2
    path = write_runs(tmp_path / "runs.csv", [*rows, worse])
    more = ["--test-size", "500", "--best-over", "batch", "--units", "compute=FLOP"]
    assert run_command(path, "--where", 'family == "caft" and n < 1e13', *more) == 0
    printed = capsys.readouterr().out
    assert "other" not in printed
    for said in (
        "1 runs have no t2i_r1: line 6",
        "1 of 9 runs are near chance, with errors above 0.898; no law is fitted to them: line 2",
        "1 runs without a single error count as half a one: line 11",
        "1 runs are worse over batch",
        "from the size of the test",
    ):
        assert said in printed, said
    assert "compute: flops in FLOP" in (tmp_path / "out" / "fit.html").read_text()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("family = 1", "not a condition"),
        ("colour == 1", "has no column colour; it has family"),
        ('family == "none"', "holds for none of the 10 runs"),
        ("open('x')", "only comparisons of columns"),
    ],
)
def test_a_bad_condition_is_one_line(
    condition: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_runs(tmp_path / "runs.csv", front_rows())
    assert run_command(path, "--where", condition) == 2
    assert re.search(message, capsys.readouterr().err)


def test_families_apart_by_less_than_their_intervals_are_told_apart_in_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_runs(tmp_path / "runs.csv", [*front_rows(), *front_rows("other", 1.1)])
    assert run_command(path, "--test-size", "5000") == 0
    printed = capsys.readouterr().out
    assert "caft is better from 10¹⁸ to 10²¹" in printed.splitlines()[0]
    assert re.search(r"single run's error over that of other .* z = -\d", printed)


def test_families_that_cross_are_told_apart_and_where_they_cross(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*front_rows(), *front_rows("other", 1.1)]
    for row in rows[10:]:
        row[6] = 1 - (1 - float(row[6])) * (float(row[3]) / 1e18) ** -0.02
    path = write_runs(tmp_path / "runs.csv", rows)
    assert run_command(path) == 0
    first = capsys.readouterr().out.splitlines()[0]
    found = re.search(r"they cross at ([\d.]+)×10²⁰ \(", first)
    assert found
    assert float(found[1]) == pytest.approx(1e-2 * 1.1**50, rel=0.5)
    assert "caft is better from 10¹⁸ to" in first


def test_too_few_runs_for_an_interval_still_make_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*front_rows()[-3:], *front_rows("other", 1.3)[-1:]]
    path = write_runs(tmp_path / "runs.csv", rows)
    assert run_command(path, "--test-size", "5000") == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert "other: no law" in first
    assert "caft is better at 10²¹" in first
    assert any("no interval" in line for line in rest)
    assert (tmp_path / "out" / "fit.html").exists()


def test_a_report_of_many_runs_stays_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, runs = np.random.default_rng(0), 400
    size, samples = 10 ** rng.uniform(6, 9, runs), 10 ** rng.uniform(7, 10, runs)
    error = STUDIES["size_samples"].law({"parameters": size, "samples": samples})
    rows = [
        ["caft", n, 256, 6 * size[n] * samples[n], size[n], samples[n], 1, error[n]]
        for n in range(runs)
    ]
    table = write_runs(tmp_path / "runs.csv", rows)
    more = ["--parameters", "n", "--samples", "d", "--error", "whole_loss"]
    assert main([str(table), *NAMED, *more, "--output", str(tmp_path)]) == 0
    with (tmp_path / "fit.csv").open(newline="") as file:
        every = [row for row in csv.DictReader(file) if row["kind"] == "held out" and row["at"]]
    printed = [line for line in capsys.readouterr().out.splitlines() if "measured" in line]
    assert len(printed) < 130 < len(every)
    page = (tmp_path / "fit.html").read_text()
    assert page.count(" parameters</text>") <= 24
    assert len(page) < 1_000_000


def test_held_out_runs_without_an_interval_are_not_counted_as_inside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compute = np.geomspace(1e18, 1e21, 6)
    rows = [["caft", 0, 256, c, 1e6, 1e6, 1 - 30 * c**-0.1, 0.1] for c in compute]
    table = write_runs(tmp_path / "runs.csv", rows)
    more = ["--score", "t2i_r1", "--forms", "power", "--output", str(tmp_path)]
    assert main([str(table), *NAMED, *more]) == 0
    out = capsys.readouterr().out
    assert "too few runs to test intervals" in out.splitlines()[0]
    assert re.search("held out: error in %.*no intervals", out)


def test_runs_that_are_all_near_chance_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = [["caft", n, 256, 10.0 ** (18 + n), 1e6 * 2**n, 1e6, 0.01, 4.0] for n in range(5)]
    more = ["--parameters", "n", "--samples", "d", "--score", "t2i_r1", "--output", str(tmp_path)]
    table = write_runs(tmp_path / "runs.csv", near)
    assert main([str(table), *NAMED, *more]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "5 of 5 runs are near chance" in error
    # Of two families, the other one has its laws.
    write_runs(table, [*near, *front_rows("other")])
    assert main([str(table), *NAMED, *more]) == 0
    assert "caft: no law" in capsys.readouterr().out.splitlines()[0]


def test_a_target_without_a_law_costs_no_other_target_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = (*HEADER, "near", "broken")
    rows = [[*row, 0.01, "n/a" if n else "much"] for n, row in enumerate(front_rows())]
    path = tmp_path / "runs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    more = ["--score", "near", "t2i_r1", "broken", "--output", str(tmp_path / "out")]
    assert main([str(path), *NAMED, *more]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"DataError: {path} line 2: broken is 'much', not a number\n"
    assert "1 - near: no law: " in printed.out
    record = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert [study["target"] for study in record["studies"]] == ["1 - t2i_r1"]
    assert "1 - near: no law" in record["facts"]["left out"]
