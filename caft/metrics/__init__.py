"""Scores of models as plain functions of arrays: retrieval, segmentation and superpixels.
Used by the evaluate stage and by notebooks; nothing in here knows of a model."""

from caft.metrics.intervals import (
    Difference,
    Estimate,
    difference,
    holm,
    interval,
    ratio,
    recall_estimates,
    recall_intervals,
)
from caft.metrics.retrieval import retrieval_recall
from caft.metrics.segmentation import (
    binarise,
    centre_box,
    mask_iou,
    mask_overlap,
    overlap_scores,
    peak_overlap,
)
from caft.metrics.superpixels import (
    achievable_segmentation_accuracy,
    boundary_recall,
    undersegmentation_error,
)

__all__ = [
    "Difference",
    "Estimate",
    "achievable_segmentation_accuracy",
    "binarise",
    "boundary_recall",
    "centre_box",
    "difference",
    "holm",
    "interval",
    "mask_iou",
    "mask_overlap",
    "overlap_scores",
    "peak_overlap",
    "ratio",
    "recall_estimates",
    "recall_intervals",
    "retrieval_recall",
    "undersegmentation_error",
]
