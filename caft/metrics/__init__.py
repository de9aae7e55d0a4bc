"""Scores of models as plain functions of arrays: retrieval, segmentation and superpixels.
Used by the evaluate stage and by notebooks; nothing in here knows of a model."""

from caft.metrics.intervals import recall_intervals
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
    "achievable_segmentation_accuracy",
    "binarise",
    "boundary_recall",
    "centre_box",
    "mask_iou",
    "mask_overlap",
    "overlap_scores",
    "peak_overlap",
    "recall_intervals",
    "retrieval_recall",
    "undersegmentation_error",
]
