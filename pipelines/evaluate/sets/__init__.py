"""The published sets by the names that configurations use.
One module per family reads them as they are published; opening.py makes them benchmarks."""

from __future__ import annotations

from pipelines.evaluate.sets.base import PublishedSet
from pipelines.evaluate.sets.dci import DCI
from pipelines.evaluate.sets.docci import DOCCI, IIW
from pipelines.evaluate.sets.refcoco import (
    REFCOCO,
    REFCOCO_GOOGLE,
    REFCOCO_PLUS,
    REFCOCOG,
    REFCOCOG_GOOGLE,
)
from pipelines.evaluate.sets.segmented import ADE150, VOC20
from pipelines.evaluate.sets.sharegpt4v import SHAREGPT4V_1K, SHAREGPT4V_10K
from pipelines.evaluate.sets.short_text import COCO, FLICKR30K
from pipelines.evaluate.sets.urban import URBAN_1K

SETS: dict[str, PublishedSet] = {
    "dci": DCI,
    "docci": DOCCI,
    "iiw": IIW,
    "sharegpt4v_1k": SHAREGPT4V_1K,
    "sharegpt4v_10k": SHAREGPT4V_10K,
    "urban_1k": URBAN_1K,
    "coco": COCO,
    "flickr30k": FLICKR30K,
    "refcoco": REFCOCO,
    "refcoco_google": REFCOCO_GOOGLE,
    "refcoco+": REFCOCO_PLUS,
    "refcocog": REFCOCOG,
    "refcocog_google": REFCOCOG_GOOGLE,
    "voc20": VOC20,
    "ade150": ADE150,
}
