"""What is kept of each caption, image and region gives every number again; differences between
evaluations; protocols, and whether training images were checked against a benchmark."""

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from evaluate_support import region_of
from ranking_support import ranking_of

from caft.metrics import overlap_scores
from caft.metrics.classification import classification_scores
from caft.metrics.retrieval import recalls
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.items import (
    AS_WRITTEN,
    class_items,
    control_differences,
    estimates,
    ranked_items,
)
from pipelines.evaluate.measures import RegionMeasure, SegmentationMeasure
from pipelines.evaluate.outputs import item_files
from pipelines.evaluate.protocol import seen_in_training
from pipelines.evaluate.report.page import Evaluated, comparison_page, report_page
from pipelines.evaluate.sets.files import ImageFiles

IMAGES = 40
URLS = [f"http://x/{n}.jpg" for n in range(IMAGES)]
REGIONS = {URLS[0]: (region_of("a"), region_of("b")), URLS[2]: (region_of("c"),)}
ROWS = ImageFiles("/data/coco/", (), ())
BENCHMARK = Benchmark("coco_val", "", None, ROWS, (), tuple(URLS[:3]), (), (), REGIONS, "f")


def scores_of(seed, lead=2.0):
    """Scores (40, 80) of two captions an image; the last image has none."""
    owner = torch.arange(80) % (IMAGES - 1)
    scores = torch.randn(IMAGES, 80, generator=torch.Generator().manual_seed(seed))
    scores[owner, torch.arange(80)] += lead
    return ranking_of(scores, owner)


def again(tables, benchmark="b"):
    """Tables as they are read back from their files."""
    return {
        name.removeprefix(f"items-{benchmark}-").removesuffix(".parquet"): pq.read_table(
            io.BytesIO(data)
        )
        for name, data in item_files(benchmark, tables).items()
    }


def test_recalls_come_again_from_the_ranks_that_are_kept():
    written, dropped = scores_of(0), scores_of(1, lead=0.5)
    rankings = {(AS_WRITTEN, "whole"): written, ("first_sentence_dropped", "whole"): dropped}
    tables = again(ranked_items(rankings, URLS))
    found = estimates(tables, IMAGES)
    for start, ranking in (
        ("whole_", written),
        ("controls/first_sentence_dropped/", dropped),
    ):
        expected = recalls(ranking.text_rank, ranking.i2t)
        for name in ("t2i_r1", "t2i_r10", "i2t_r5"):
            assert found[f"{start}{name}"].value == pytest.approx(expected[name])
    rows = tables["captions"].filter(tables["captions"]["variant"].to_numpy() == AS_WRITTEN)
    assert rows["url"].to_pylist() == [URLS[n] for n in written.text_to_image]
    first = rows["rank"].to_numpy() == 1
    np.testing.assert_array_equal(rows["margin"].to_numpy() > 0, first)
    assert len(tables["images"]) == 2 * (IMAGES - 1)
    told = control_differences(found, "whole")
    assert told.keys() == {f"controls/first_sentence_dropped/{way}_r1" for way in ("t2i", "i2t")}
    for name, difference in told.items():
        whole = found[f"whole_{name[-6:]}"].value
        assert difference["value"] == pytest.approx(found[name].value - whole)
        assert difference["low"] < difference["value"] < difference["high"] < 0
        assert difference["p"] < 0.001


def test_regions_keep_their_sentence_and_overlap():
    measure = RegionMeasure(BENCHMARK.regions)
    rows = np.array([[6, 10, 1, 10, 2, 4], [0, 90, 45, 90, 0, 1], [5, 10, 5, 10, 3, 3]])
    tables = again({measure.items: measure.table(rows, BENCHMARK)})
    table = tables["regions"].to_pydict()
    assert (table["image"], table["text"]) == ([0, 0, 2], ["a", "b", "c"])
    assert table["iou"] == [0.6, 0, 0.5]
    found = estimates(tables, 3)
    expected = measure.scores(rows)
    assert expected.pop("regions") == 3
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(expected)
    assert expected["miou"] == pytest.approx(overlap_scores(rows[:, 0], rows[:, 1])["miou"])
    assert found["miou"].images == pytest.approx(9 / 5)  # two images, one with two sentences


def test_pixels_are_counted_image_by_image():
    measure = SegmentationMeasure([["a"], ["b"]])
    first = [[0, 3, 6, 0], [2, 3, 6, 0], [-8, 5, 6, 0], [-4, 4, 6, 0]]
    second = [[0, 1, 4, 1], [1, 2, 4, 1], [2, 3, 8, 1], [-8, 8, 8, 1], [-4, 6, 8, 1]]
    rows = np.array(first + second)
    counts, image = rows[:, :3], rows[:, 3]
    tables = again({measure.items: measure.table(counts, BENCHMARK)})
    assert tables["pixels"]["image"].to_pylist() == image.tolist()
    assert measure.scores(counts) == pytest.approx(
        {
            "classes_seen": 2,
            "semantic_miou": (4 / 10 + 2 / 4) / 2,
            "pixel_accuracy": 6 / 14,
            "achievable_8": (5 / 6 + 1) / 2,
            "achievable_4": (4 / 6 + 6 / 8) / 2,
        }
    )
    assert estimates(tables, 2)["semantic_miou"].value == pytest.approx(0.45)


def test_classes_keep_the_rank_of_each_image():
    labels, rank = np.arange(IMAGES) % 7, torch.arange(IMAGES) % 3 + 1.0
    tables = again({"classes": class_items({"whole": rank}, labels, URLS)})
    found = {name: e.value for name, e in estimates(tables, IMAGES).items()}
    expected = classification_scores(rank, torch.tensor(labels))
    assert found == pytest.approx({f"whole_{name}": value for name, value in expected.items()})


def evaluated(seed, lead, **changes):
    """An evaluation of one benchmark by one score, as `compare` reads it."""
    ranking = scores_of(seed, lead)
    numbers = {f"whole_{key}": v for key, v in recalls(ranking.text_rank, ranking.i2t).items()}
    results = {
        **{"model": f"m{seed}", "label": f"m{seed}", "step": 9, "series": str(seed)},
        **{"checkpoint": "c", "checkpoint_fingerprint": "f", "mlflow_run_id": "", "links": {}},
        **{"alpha": 0.3, "score": "whole", "recipe": "one"},
        "datasets": {"b": {"path": "p", "split": "test", "fingerprint": "d", "protocol": {}}},
        "benchmarks": {"b": {"images": IMAGES, "texts": 80, "intervals": {}, **numbers}},
    } | changes
    return Evaluated(
        results, {}, {"b": again(ranked_items({(AS_WRITTEN, "whole"): ranking}, URLS))}
    )


def test_the_comparison_has_paired_differences_and_joins_seeds():
    first, second = evaluated(0, 2.0), evaluated(1, 4.0)
    page = comparison_page([first, second])
    values = [e.results["benchmarks"]["b"]["whole_t2i_r1"] for e in (first, second)]
    assert "Differences to" in page
    assert f"<td>+{100 * (values[1] - values[0]):.1f}</td>" in page
    assert "corrected for the 2 that this page asks" in page
    assert "Runs that differ by their seed alone" in page
    assert f"<td>2</td><td>{100 * np.mean(values):.1f}</td>" in page
    assert f"<td>{100 * np.std(values, ddof=1):.1f}</td></tr>" in page


@pytest.mark.parametrize(
    ("changes", "there", "not_there"),
    [
        (
            {"datasets": {"b": {"path": "p", "split": "test", "fingerprint": "other"}}},
            "Not the same data.",
            "Differences to",
        ),
        (
            {
                "datasets": {
                    "b": {
                        **{"path": "p", "split": "test", "fingerprint": "d"},
                        "protocol": {"pictures": "crop", "sentences": "default"},
                    }
                }
            },
            "pictures: squash (m0), crop (m1)",
            "sentences: ",
        ),
        ({"recipe": "two"}, "Differences to", "seed alone"),
        ({"step": 8}, "Differences to", "seed alone"),
    ],
)
def test_what_does_not_compare_is_said(changes, there, not_there):
    first = evaluated(0, 2.0)
    first.results["datasets"]["b"]["protocol"] = {"pictures": "squash", "sentences": "default"}
    same = {"datasets": first.results["datasets"]}
    page = comparison_page([first, evaluated(1, 4.0, **(same | changes))])
    assert there in page
    assert not_there not in page


def test_the_report_tells_how_sure_a_change_is_and_how_it_was_measured():
    first = evaluated(0, 2.0)
    numbers = first.results["benchmarks"]["b"]
    numbers["controls"] = {
        "first_sentence_dropped": {"t2i_r1": 0.5, "i2t_r1": 0.5, "changed_share": 1.0}
    }
    told = {"value": -0.25, "low": -0.375, "high": -0.125, "p": 0.00001}
    numbers["control_differences"] = {
        f"controls/first_sentence_dropped/{way}_r1": told for way in ("t2i", "i2t")
    }
    first.results["datasets"]["b"] |= {
        "protocol": {"version": 2, "pictures": "crop", "templates": ["a {}.", "the {}."]},
        "training_data": {"checked": None, "how": "unknown: no manifest says"},
    }
    page = report_page(replace(first, examples={"benchmarks": {}, "about": "", "about_heat": ""}))
    assert "<td>\u221237.5 to \u221212.5</td><td>&lt;0.0001</td>" in page
    assert "version 2, templates a {}.; the {}." in page
    assert "unknown: no manifest says" in page


def test_an_evaluation_without_tables_is_shown_without_differences():
    first, second = evaluated(0, 2.0), evaluated(1, 4.0)
    assert "Differences to" not in comparison_page([replace(first, items={}), second])


def test_whether_training_images_were_checked_is_told_by_the_manifests(tmp_path):
    training = {"dataset": str(tmp_path / "gone"), "dataset_fingerprint": "x"}
    unknown = [seen_in_training(known, BENCHMARK) for known in ({}, training)]
    assert [found["checked"] for found in unknown] == [None, None]
    assert all(found["how"].startswith("unknown: ") for found in unknown)
    for sets, checked, said in (
        ([("elsewhere", "/data/coco")], True, "near-duplicates of elsewhere (/data/coco) up to 4"),
        ([("COCO-val", "/old/place")], True, "near-duplicates of COCO-val"),
        ([("flickr", "/data/flickr")], False, "checked against flickr alone"),
        ([], False, "checked against no benchmark"),
    ):
        names = [{"name": name, "path": path} for name, path in sets]
        found = seen_in_training(
            training | {"decontamination": {"sets": names, "distance": 4}}, BENCHMARK
        )
        assert found["checked"] is checked
        assert said in found["how"]
