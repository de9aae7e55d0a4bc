"""The published sets by the names that configurations use.
One module per family reads them as they are published; opening.py makes them benchmarks."""

from __future__ import annotations

from pipelines.evaluate.sets.base import PublishedSet
from pipelines.evaluate.sets.captions import CAPTION_SETS
from pipelines.evaluate.sets.refcoco import (
    REFCOCO,
    REFCOCO_GOOGLE,
    REFCOCO_PLUS,
    REFCOCOG,
    REFCOCOG_GOOGLE,
)
from pipelines.evaluate.sets.segmented import ADE150, VOC20

SETS: dict[str, PublishedSet] = {
    **CAPTION_SETS,
    "refcoco": REFCOCO,
    "refcoco_google": REFCOCO_GOOGLE,
    "refcoco+": REFCOCO_PLUS,
    "refcocog": REFCOCOG,
    "refcocog_google": REFCOCOG_GOOGLE,
    "voc20": VOC20,
    "ade150": ADE150,
}
