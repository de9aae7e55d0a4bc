"""What pages call scores, measures and changed captions.
For tables and curves."""

from __future__ import annotations

MEASURES = {
    "t2i_r1": "Text → image R@1",
    "i2t_r1": "Image → text R@1",
    "miou": "mIoU",
}
# What differences between evaluations are asked of.
COMPARED = MEASURES | {
    "oiou": "oIoU",
    "precision_50": "P@0.5",
    "pointing": "Pointing",
    "top1": "Top 1",
    "mean_per_class": "Mean per class",
    "semantic_miou": "Semantic mIoU",
    "pixel_accuracy": "Pixel accuracy",
}
SCORE_NAMES = {
    "whole": "Whole caption",
    "part": "Parts",
    "blended": "Blended with parts",
    "rerank": "Reranked",
}
VARIANTS = {
    "first_sentence_dropped": "First sentence dropped",
    "first_sentence_last": "First sentence moved last",
    "sentences_shuffled": "Sentences shuffled",
}
NOISY = "noisy_"


def variant_order(variant: str) -> tuple[int, float, str]:
    """What tables sort changed captions by: those of the order first, then noise by its share."""
    if variant in VARIANTS:
        return 0, list(VARIANTS).index(variant), variant
    if variant.startswith(NOISY):
        return 1, float(variant.removeprefix(NOISY)), variant
    return 2, 0.0, variant


def variant_name(variant: str) -> str:
    """A changed caption's name in a table."""
    if variant.startswith(NOISY):
        return f"{100 * float(variant.removeprefix(NOISY)):g}% of sentences from other images"
    return VARIANTS.get(variant, variant.replace("_", " "))
