"""Published numbers: found under any spelling of a benchmark's name, and beside the right ones."""

import re

import pytest

from caft.config import read_yaml
from pipelines.evaluate.report.names import MEASURES
from pipelines.evaluate.report.published import NUMBERS, published


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
        ("urban_1k", "DeBias-CLIP", "t2i_r1", 0.93),
        ("COCO", "FLAIR-30M", "i2t_r1", 0.68),
        ("refcoco_plus_testA", "CAFT", "miou", 0.298),
        ("G-Ref", "CAFT", "miou", 0.3139),
    ],
)
def test_names_of_any_spelling(name, model, measure, value):
    assert published(name).models[model][measure] == pytest.approx(value)


def test_other_names_have_nothing_published():
    assert published("scenes") is None
