"""What was measured on each caption, image and region: tables that are kept as Parquet beside
metrics.json. Intervals and differences are made of these tables, here and whenever somebody asks
again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from caft.metrics import Difference, Estimate, difference, holm, recall_estimates
from caft.metrics.classification import classification_estimates
from caft.metrics.intervals import class_mean, ratio
from caft.metrics.segmentation import overlap_estimates
from caft.retrieval import Ranking

CAPTIONS, IMAGES, CLASSES, REGIONS, PIXELS = "captions", "images", "classes", "regions", "pixels"
AS_WRITTEN = "as written"
RANKED = ("t2i_r1", "i2t_r1")  # what differences of changed captions are asked of

TABLES = (CAPTIONS, IMAGES, CLASSES, REGIONS, PIXELS)

Tables = Mapping[str, pa.Table]  # of one benchmark, by these names


def ranked_items(
    rankings: Mapping[tuple[str, str], Ranking], urls: Sequence[str]
) -> dict[str, pa.Table]:
    """Tables `captions` and `images` of rankings by variant of the captions and score.

    A row is a caption, or an image that has one: `variant`, `score`, `caption`, `image` (places
    from 0), `url`, `rank` of the right item (from 1; infinity: it dropped out) and `margin`, how
    much higher its score is than that of the best wrong one.
    """
    captions, images = [], []
    for (variant, score), found in rankings.items():
        owner = found.text_to_image.numpy()
        own = {"variant": variant, "score": score}
        margin = (found.text_right - found.text_wrong).numpy()
        rank = found.text_rank.numpy()
        columns = {"caption": np.arange(len(owner)), "image": owner, "rank": rank}
        captions.append(_ranked(own, columns, margin, urls))
        asked = (found.image_rank > 0).numpy()
        margin = (found.image_right - found.image_wrong).numpy()[asked]
        columns = {"image": np.flatnonzero(asked), "rank": found.i2t.numpy()}
        images.append(_ranked(own, columns, margin, urls))
    return {CAPTIONS: pa.concat_tables(captions), IMAGES: pa.concat_tables(images)}


def _ranked(
    own: Mapping[str, str],
    columns: Mapping[str, np.ndarray],
    margin: np.ndarray,
    urls: Sequence[str],
) -> pa.Table:
    rows = len(margin)
    places = {name: pa.array(columns[name], pa.int32()) for name in columns if name != "rank"}
    return pa.table(
        {name: pa.array([value] * rows, pa.string()) for name, value in own.items()}
        | places
        | {
            "url": pa.array([urls[place] for place in columns["image"]], pa.string()),
            "rank": pa.array(columns["rank"], pa.float64()),
            "margin": pa.array(margin, pa.float32()),
        }
    )


def class_items(
    ranks: Mapping[str, torch.Tensor], labels: Sequence[int], urls: Sequence[str]
) -> pa.Table:
    """Table `classes`: of each image and score the `rank` of its own class, `label`."""
    tables = [
        pa.table(
            {
                "score": pa.array([score] * len(urls), pa.string()),
                "image": pa.array(np.arange(len(urls)), pa.int32()),
                "url": pa.array(urls, pa.string()),
                "label": pa.array(labels, pa.int32()),
                "rank": pa.array(rank.numpy(), pa.float64()),
            }
        )
        for score, rank in ranks.items()
    ]
    return pa.concat_tables(tables)


def estimates(tables: Tables, images: int) -> dict[str, Estimate]:
    """Every metric that tables tell of a benchmark of so many images, by its name in
    metrics.json; those of changed captions are `controls/<variant>/<metric>`."""
    found: dict[str, Estimate] = {}
    if CAPTIONS in tables:
        for variant, score in _pairs(tables[CAPTIONS]):
            own = [_rows(tables[name], variant=variant, score=score) for name in (CAPTIONS, IMAGES)]
            texts, asked = own
            image_rank = torch.zeros(images, dtype=torch.float64)
            image_rank[_tensor(asked, "image").long()] = _tensor(asked, "rank")
            owner = _tensor(texts, "image").long()
            of_score = recall_estimates(_tensor(texts, "rank"), image_rank, owner)
            start = f"{score}_" if variant == AS_WRITTEN else f"controls/{variant}/"
            found |= {f"{start}{name}": estimate for name, estimate in of_score.items()}
    if CLASSES in tables:
        for score in pc.unique(tables[CLASSES]["score"]).to_pylist():
            rows = _rows(tables[CLASSES], score=score)
            columns = _columns(rows)
            of_score = classification_estimates(columns["rank"], columns["label"])
            found |= {f"{score}_{name}": estimate for name, estimate in of_score.items()}
    if REGIONS in tables:
        found |= region_estimates(_columns(tables[REGIONS]), images)
    if PIXELS in tables:
        found |= pixel_estimates(_columns(tables[PIXELS]))
    return found


def region_estimates(counts: Mapping[str, np.ndarray], images: int) -> dict[str, Estimate]:
    """`miou`, `oiou`, `precision_50`, `pointing`, and the first three of the centre box, of the
    columns of table `regions`."""
    image = counts["image"]
    hits = counts["peak_inside"] / np.maximum(counts["peak"], 1)
    ones = np.bincount(image, minlength=images).astype(float)
    found = {"pointing": ratio(np.bincount(image, hits, minlength=images), ones)}
    for of in ("", "centre_box_"):
        shared, either = counts[f"{of}intersection"], counts[f"{of}union"]
        overlaps = overlap_estimates(image, shared, either, images)
        found |= {f"{of}{name}": estimate for name, estimate in overlaps.items()}
    return found


def pixel_estimates(counts: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """`semantic_miou`, `pixel_accuracy` and `achievable_<segments>`, of the columns of table
    `pixels`."""
    image, item, hits, totals = (counts[name] for name in ("image", "item", "hits", "pixels"))
    images = int(image.max()) + 1
    every = item == item.max()  # the row of all pixels
    found = {"pixel_accuracy": ratio(hits[every].astype(float), totals[every].astype(float))}
    own = (item >= 0) & ~every
    found["semantic_miou"] = class_mean(image[own], item[own], hits[own], totals[own], images)
    for level in np.unique(item[item < 0]):
        here = item == level
        found[f"achievable_{-level}"] = ratio(hits[here] / totals[here], np.ones(images))
    return found


def control_differences(
    of_metrics: Mapping[str, Estimate], own: str
) -> dict[str, dict[str, float]]:
    """How much more is found with changed captions than as written, of `own` score: by
    `controls/<variant>/<metric>` the `value`, its interval `low`, `high`, and `p`, corrected for
    as many questions as there are (Holm)."""
    asked = {
        name: difference(of_metrics[f"{own}_{name.rpartition('/')[2]}"], estimate)
        for name, estimate in of_metrics.items()
        if name.startswith("controls/") and name.endswith(RANKED)
    }
    return {name: vars(found) for name, found in corrected(asked).items()}


def corrected(asked: Mapping[str, Difference]) -> dict[str, Difference]:
    """The same differences, with p corrected for the number of them (Holm)."""
    p = holm([found.p for found in asked.values()])
    return {
        name: Difference(found.value, found.low, found.high, each)
        for (name, found), each in zip(asked.items(), p, strict=True)
    }


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    pairs = table.group_by(["variant", "score"]).aggregate([])
    return list(zip(pairs["variant"].to_pylist(), pairs["score"].to_pylist(), strict=True))


def _rows(table: pa.Table, **values: str) -> pa.Table:
    for name, value in values.items():
        table = table.filter(pc.field(name) == value)
    return table


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    numbers = [field.name for field in table.schema if not pa.types.is_string(field.type)]
    return {name: table[name].to_numpy() for name in numbers}


def _tensor(table: pa.Table, name: str) -> torch.Tensor:
    return torch.tensor(table[name].to_numpy())
