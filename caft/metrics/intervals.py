"""How far a recall may be from that of other images like these: bootstrap intervals.
Works on ranks, so no score is computed again."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from caft.metrics.retrieval import RECALL_AT

LOW, HIGH = 0.025, 0.975  # the ends of a 95% interval
AT_A_TIME = 100  # resamples held in memory


def recall_intervals(
    text_rank: Tensor,
    image_rank: Tensor,
    text_to_image: Tensor,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95% percentile bootstrap intervals of R@1, R@5 and R@10 both ways.

    Images are drawn with replacement, each with all its texts, since texts of one image are not
    independent. What stands in the gallery stays as it is: ranks are those measured.

    Args:
        text_rank: (T,) rank of each text's image.
        image_rank: (N,) rank of each image's best text; 0 of an image without a text.
        text_to_image: (T,) the image each text belongs to.

    Returns:
        `t2i_r1`, ... -> (low, high), as fractions.
    """
    images = len(image_rank)
    owner = text_to_image.numpy()
    texts = np.bincount(owner, minlength=images).astype(np.float64)
    asked = (image_rank > 0).double().numpy()
    totals, hits = {"t2i": texts, "i2t": asked}, {}
    for k in RECALL_AT:
        found = (text_rank <= k).double().numpy()
        hits[f"t2i_r{k}"] = np.bincount(owner, weights=found, minlength=images)
        hits[f"i2t_r{k}"] = asked * (image_rank <= k).double().numpy()
    columns = np.stack([*totals.values(), *hits.values()], axis=1)  # (N, 2 + 6)
    rng = np.random.default_rng(seed)
    sums = []
    for start in range(0, samples, AT_A_TIME):
        count = min(AT_A_TIME, samples - start)
        drawn = rng.integers(0, images, (count, images)) + images * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images)
        sums.append(times @ columns)
    drawn_sums = dict(zip([*totals, *hits], np.concatenate(sums).T, strict=True))
    intervals = {}
    for name in hits:
        total = drawn_sums[name[:3]]  # 0 only if no drawn image has a text
        recall = drawn_sums[name][total > 0] / total[total > 0]
        low, high = np.quantile(recall, (LOW, HIGH))
        intervals[name] = (float(low), float(high))
    return intervals
