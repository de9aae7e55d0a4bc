"""Builds the HTML report: numbers, segments, heat maps, best and worst retrievals in one file.
Last step of the evaluate stage; reads what was scored and draws a few images again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from caft.localize import encode_sentences, heat_maps, segment_hierarchy
from caft.metrics.retrieval import RECALL_AT
from caft.metrics.tally import Ranking
from caft.model import CAFT
from caft.pictures import (
    data_url,
    draw_borders,
    draw_heat,
    draw_hierarchy,
    heat_colours,
    to_canvas,
)
from caft.transforms import decode_image, eval_image
from pipelines.evaluate.benchmark import Benchmark, Region
from pipelines.evaluate.config import EvaluateConfig, ReportConfig
from pipelines.evaluate.localisation import heat_overlap
from pipelines.evaluate.results import WAYS, BenchmarkResults, score_names

TEMPLATE = Path(__file__).parent / "report.html.j2"


@dataclass(frozen=True)
class Scored:
    """One benchmark's results, ready to be shown."""

    benchmark: Benchmark
    results: BenchmarkResults


def render_report(
    model: CAFT,
    step: int,
    scored: list[Scored],
    config: EvaluateConfig,
    facts: Mapping[str, str],
) -> str:
    """The whole report as one HTML page that needs nothing beside it.

    Args:
        facts: what is said of where the numbers come from, label -> text.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    environment.filters["signed"] = lambda value: f"{value:.2f}".replace("-", "\u2212")
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        model=model.config,
        step=step,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        alpha=config.alpha,
        facts=facts,
        benchmarks=[_section(model, result, config.report) for result in scored],
        recall_at=RECALL_AT,
        ways=WAYS,
        scores=score_names(model.config),
        ramp=data_url(heat_colours(np.tile(np.linspace(0, 1, 96), (8, 1)))),
    )


def _section(model: CAFT, result: Scored, config: ReportConfig) -> dict[str, Any]:
    """What the template shows of one benchmark."""
    benchmark = result.benchmark
    anatomies = _spread(benchmark, config.images)
    ranking = result.results.ranking
    cases = _retrievals(ranking, config.retrievals) if ranking else []
    wanted = {*anatomies, *(n for case in cases for n in (case["image"], *case["found"]))}
    images = read_images(benchmark, wanted)
    thumbnails = {n: data_url(to_canvas(image)) for n, image in images.items()}
    return {
        "name": benchmark.name,
        "count": len(benchmark.urls),
        "metrics": result.results.metrics,
        "anatomies": [_anatomy(model, benchmark, n, images[n], config) for n in anatomies],
        "cases": [
            {
                "good": case["good"],
                "rank": case["rank"],
                "own_score": case["own_score"],
                "caption": ". ".join(benchmark.sentences[case["text"]]) + ".",
                "own": thumbnails[case["image"]],
                "found": [
                    {"src": thumbnails[n], "score": score, "right": n == case["image"]}
                    for n, score in case["found"].items()
                ],
            }
            for case in cases
        ],
    }


def read_images(benchmark: Benchmark, positions: Iterable[int]) -> dict[int, np.ndarray]:
    """Decode the stored images at some positions of a benchmark."""
    wanted = set(positions)
    ends = [piece.first for piece in benchmark.pieces[1:]] + [len(benchmark.urls)]
    images: dict[int, np.ndarray] = {}
    for piece, end in zip(benchmark.pieces, ends, strict=True):
        here = wanted & set(range(piece.first, end))
        rows = benchmark.rows.read(piece) if here else []
        images |= {n: decode_image(rows[n - piece.first]["image"]) for n in here}
    return images


def _spread(benchmark: Benchmark, count: int) -> list[int]:
    """Positions spread evenly over the benchmark, of images with regions if there are any."""
    with_regions = [n for n, url in enumerate(benchmark.urls) if benchmark.regions.get(url)]
    positions = with_regions or list(range(len(benchmark.urls)))
    places = np.linspace(0, len(positions) - 1, min(count, len(positions))).round().astype(int)
    return [positions[place] for place in places]


@torch.inference_mode()
def _anatomy(
    model: CAFT, benchmark: Benchmark, position: int, image: np.ndarray, config: ReportConfig
) -> dict[str, Any]:
    """One image with its superpixels, its hierarchy of segments and a heat map per sentence."""
    pixels = eval_image(image, model.config.image.image_size_px)[None]
    features = model.encode_image(pixels)
    superpixels = features.superpixels[0].numpy()
    levels = [labels[0].numpy() for labels in segment_hierarchy(features)]
    canvas = to_canvas(image)
    regions = benchmark.regions.get(benchmark.urls[position], ())
    captions = [
        sentences
        for sentences, image in zip(benchmark.sentences, benchmark.text_to_image, strict=True)
        if image == position
    ]
    own = [sentence for caption in captions for sentence in caption]
    texts = _texts(regions, own)[: config.sentences]
    sentences = encode_sentences(model, [text for text, _ in texts])
    heats = []
    for (text, mask), heat in zip(texts, heat_maps(model, features, sentences), strict=True):
        iou = None
        if mask is not None:
            intersection, union = heat_overlap(heat, mask)
            iou = float(intersection / max(1, union))
        heats.append({"text": text, "src": data_url(draw_heat(canvas, heat, mask)), "iou": iou})
    drawn = draw_hierarchy(canvas, levels)
    return {
        "input": data_url(canvas),
        "superpixels": data_url(draw_borders(canvas, superpixels)),
        "levels": [
            {"src": data_url(picture), "used": len(np.unique(labels)), "most": most}
            for picture, labels, most in zip(
                drawn, levels, model.config.image.segments, strict=True
            )
        ],
        "heats": heats,
    }


def _texts(
    regions: Iterable[Region], sentences: Iterable[str]
) -> list[tuple[str, np.ndarray | None]]:
    """What gets a heat map: sentences with a mask, then the caption's other sentences."""
    masks = {region.text: region.mask for region in regions}
    rest = [sentence for sentence in sentences if sentence not in masks]
    return [*masks.items(), *((sentence, None) for sentence in rest)]


def _retrievals(ranking: Ranking, count: int) -> list[dict[str, Any]]:
    """The captions whose image was found most clearly, and those that missed it most.

    Ordered by the image's rank, then by how far its score is above that of the best wrong one.
    """
    rank = ranking.text_rank
    behind = (ranking.text_wrong - ranking.text_right).tolist()
    order = sorted(range(len(rank)), key=lambda n: (float(rank[n]), behind[n]))
    best = order[:count]
    worst = [n for n in reversed(order) if n not in best][:count]
    return [
        {
            "text": text,
            "image": int(ranking.text_to_image[text]),
            "good": text in best,
            "rank": int(rank[text]),
            "own_score": float(ranking.text_right[text]),
            "found": {
                image: score
                for image, score in zip(
                    ranking.text_top[text].tolist(),
                    ranking.text_top_scores[text].tolist(),
                    strict=True,
                )
                if image >= 0
            },
        }
        for text in [*best, *worst]
    ]
