"""Builds the HTML report: numbers, segments, heat maps, best and worst retrievals in one file.
Last step of the evaluate stage; reads what was scored and draws a few images again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from caft.localize import encode_sentences, heat_maps, segment_hierarchy
from caft.masks import decode_rle
from caft.metrics import binarise, mask_iou
from caft.metrics.retrieval import ranks
from caft.model import CAFT
from caft.transforms import decode_image, eval_image
from pipelines import storage
from pipelines.data.dataset import Dataset
from pipelines.evaluate.config import ReportConfig
from pipelines.evaluate.embed import Embedded
from pipelines.evaluate.pictures import coloured, data_url, enlarge, heat_overlay, with_borders

TOP = 5
TEMPLATE = Path(__file__).parent / "report.html.j2"


@dataclass
class Scored:
    """One benchmark's results, ready to be shown."""

    name: str
    dataset: Dataset
    split: str
    embedded: Embedded
    scores: Tensor  # blended, (N, N)
    metrics: dict[str, float]
    regions: dict[str, list[dict[str, Any]]]


def write_report(
    path: str, model: CAFT, scored: list[Scored], facts: dict[str, str], config: ReportConfig
) -> None:
    """Render the report to one self-contained HTML file."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    benchmarks = []
    for result in scored:
        shown = _shown_urls(result, config.images)
        retrievals = _retrievals(result, config.retrievals)
        wanted = set(shown) | {url for case in retrievals for url in case["urls"]}
        images = read_images(result.dataset, result.split, wanted)
        for case in retrievals:
            case["images"] = [
                {**entry, "src": data_url(enlarge(images[entry["url"]]))}
                for entry in case["ranked"]
            ]
            case["true"] = data_url(enlarge(images[case["url"]]))
        benchmarks.append(
            {
                "name": result.name,
                "rows": len(result.embedded.urls),
                "metrics": result.metrics,
                "sentences_with_mask": len(result.embedded.iou),
                "images": [_anatomy(model, images[url], url, result) for url in shown],
                "retrievals": retrievals,
            }
        )
    segments = model.config.image.segments
    page = template.render(
        model=model.config.name,
        facts=facts,
        benchmarks=benchmarks,
        superpixels=model.config.image.superpixel_count,
        segments=segments,
    )
    storage.write_bytes(path, page.encode("utf-8"))


def read_images(dataset: Dataset, split: str, urls: set[str]) -> dict[str, np.ndarray]:
    """Decode the stored images of some URLs."""
    found: dict[str, np.ndarray] = {}
    for entry in dataset.files:
        fs, path = storage.filesystem(storage.join(dataset.path, entry.name))
        table = pq.read_table(
            path,
            filesystem=fs,
            columns=["url", "image"],
            filters=pc.field("url").isin(list(urls)) & (pc.field("split") == split),
        )
        found |= {row["url"]: decode_image(row["image"]) for row in table.to_pylist()}
    return found


def _shown_urls(result: Scored, count: int) -> list[str]:
    """Images spread evenly over the benchmark, those with masks first."""
    with_masks = [url for url in result.embedded.urls if url in result.regions]
    urls = with_masks or result.embedded.urls
    step = max(1, len(urls) // max(1, count))
    return urls[::step][:count]


@torch.inference_mode()
def _anatomy(model: CAFT, image: np.ndarray, url: str, result: Scored) -> dict[str, Any]:
    """One image with its superpixels, its hierarchy and a heat map per sentence."""
    size_px = model.config.image.image_size_px
    pixels = eval_image(image, size_px)
    square = pixels.permute(1, 2, 0).numpy()
    features = model.encode_image(pixels[None].to(model.fine_projection.device))
    levels = [labels[0].cpu().numpy() for labels in segment_hierarchy(features)]
    regions = result.regions.get(url)
    row = result.embedded.urls.index(url)
    texts = [r["text"] for r in regions] if regions else result.embedded.sentences[row]
    masks = [_square_mask(r, size_px) for r in regions] if regions else [None] * len(texts)
    heats = heat_maps(model, features, encode_sentences(model, texts))
    sentences = []
    for text, heat, mask in zip(texts, heats, masks, strict=True):
        overlap = None if mask is None else float(mask_iou(binarise(heat), mask))
        picture = data_url(heat_overlay(square, heat, mask))
        sentences.append({"text": text, "src": picture, "iou": overlap})
    return {
        "src": data_url(enlarge(square)),
        "superpixels": data_url(with_borders(square, features.superpixels[0].cpu().numpy())),
        "levels": [data_url(coloured(square, labels)) for labels in levels],
        "sentences": sentences,
    }


def _square_mask(region: dict[str, Any], size_px: int) -> np.ndarray:
    """A mask resampled to the square the model sees."""
    mask = decode_rle(region)
    rows = np.arange(size_px) * mask.shape[0] // size_px
    columns = np.arange(size_px) * mask.shape[1] // size_px
    return mask[rows[:, None], columns[None]]


def _retrievals(result: Scored, count: int) -> list[dict[str, Any]]:
    """The captions whose image was found best and worst, with what was found instead."""
    order = torch.arange(result.scores.shape[1])
    rank, _ = ranks(result.scores, order)
    own = result.scores.diagonal()
    margin = own - result.scores.masked_fill(
        torch.eye(len(order), dtype=torch.bool), -torch.inf
    ).amax(0)
    best = margin.argsort(descending=True)[:count]
    worst = rank.argsort(descending=True, stable=True)[:count]
    cases = []
    for kind, texts in (("Best", best), ("Worst", worst)):
        for text in texts.tolist():
            top = result.scores[:, text].topk(min(TOP, len(order)))
            ranked = [
                {"url": result.embedded.urls[n], "score": score, "right": n == text}
                for score, n in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            ]
            url = result.embedded.urls[text]
            cases.append(
                {
                    "kind": kind,
                    "rank": int(rank[text]),
                    "caption": ". ".join(result.embedded.sentences[text]) + ".",
                    "url": url,
                    "ranked": ranked,
                    "urls": [url, *(entry["url"] for entry in ranked)],
                }
            )
    return cases
