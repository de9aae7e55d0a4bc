"""Scores of models as plain functions of arrays: retrieval and segmentation.
Used by the evaluate stage and by notebooks; nothing in here knows of a model."""

from caft.metrics.retrieval import retrieval_recall
from caft.metrics.segmentation import (
    binarise,
    centre_box,
    mask_iou,
    mask_overlap,
    overlap_scores,
)

__all__ = [
    "binarise",
    "centre_box",
    "mask_iou",
    "mask_overlap",
    "overlap_scores",
    "retrieval_recall",
]
