"""Published numbers: found under any spelling of a benchmark's name, and beside the right ones."""

import re

import pytest

from caft.config import read_yaml
from pipelines.evaluate.report.names import MEASURES
from pipelines.evaluate.report.published import NUMBERS, SOURCES, published
from pipelines.evaluate.report.tables import published_rows


def test_every_number_is_a_measure_that_pages_know():
    entries = read_yaml(NUMBERS)
    names = [n for name, entry in entries.items() for n in (name, *entry.get("also", ()))]
    plain = [re.sub(r"[^a-z0-9]", "", name) for name in names]
    assert len(set(plain)) == len(plain)
    for entry in entries.values():
        for numbers in entry["models"].values():
            assert set(numbers) <= set(MEASURES)
            assert all(0 < value < 100 for value in numbers.values())


@pytest.mark.parametrize(
    ("name", "model", "measure", "value"),
    [
        ("dci", "CAFT-30M", "t2i_r1", 0.724),
        ("DCI", "CAFT-30M", "i2t_r1", 0.697),
        ("docci-test", "CAFT-30M", "i2t_r1", 0.806),
        ("urban_1k", "DeBias-CLIP B/16", "t2i_r1", 0.93),
        ("COCO", "FLAIR-30M", "i2t_r1", 0.68),
        ("refcoco_plus_testA", "CAFT", "miou", 0.298),
        ("G-Ref", "CAFT", "miou", 0.3139),
    ],
)
def test_names_of_any_spelling(name, model, measure, value):
    assert published(name).models[model][measure] == pytest.approx(value)


def test_every_row_has_a_source_a_date_and_a_protocol():
    used = set()
    for name in read_yaml(NUMBERS):
        known = published(name)
        assert set(known.sources) == set(known.models)
        assert set(known.scores) <= set(known.models)
        for source in known.sources.values():
            assert all((source.source, source.protocol, source.checked))
            assert re.match(r"20\d\d", source.date)
            used.add(source)
    assert len(used) == len(read_yaml(SOURCES))
    assert "disputed" in published("dci").sources["LoTLIP-B/16"].protocol
    assert "not public" in published("refcoco_val").sources["CAFT"].protocol


def test_the_3m_anchor_is_compared_with_the_whole_score_alone():
    numbers = {"images": 7805.0, "intervals": {}}
    numbers |= {f"{kind}_{way}_r1": 0.4 for kind in ("whole", "blended") for way in ("t2i", "i2t")}
    numbers["whole_t2i_r1"], numbers["blended_t2i_r1"] = 0.5, 0.6
    models, rows, sources = published_rows({"benchmarks": {"dci": numbers}, "score": "blended"})
    said = rows[0]["said"]
    assert said["CAFT-3M"]["more"] == pytest.approx(0.5 - 0.558)
    assert said["CAFT-3M"]["score"] == "Whole caption"
    assert said["CAFT-30M"]["more"] == pytest.approx(0.6 - 0.724)
    assert {model for names in sources.values() for model in names} == set(models)


def test_other_names_have_nothing_published():
    assert published("scenes") is None
