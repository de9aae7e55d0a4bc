"""Gathers what pages show of single images and captions, with pictures inlined: examples.json.
The evaluate stage's last step that needs a model or a dataset; the pages are drawn from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caft.captions import JOINER, caption_sentences
from caft.config import PictureRule
from caft.model import CAFT
from caft.pictures import data_url, to_canvas
from caft.preprocessing import read_picture
from pipelines.evaluate.adapters import Adapter
from pipelines.evaluate.adapters.own import CAFTAdapter
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.config import ReportConfig
from pipelines.evaluate.report.anatomy import about_heat, about_model, anatomy
from pipelines.evaluate.report.mistakes import Mistake, Mistakes, caption_mistakes, image_mistakes
from pipelines.evaluate.results import BenchmarkResults

MAX_CAPTION_CHARS = 700  # of a caption beside a picture


@dataclass(frozen=True)
class Scored:
    """One benchmark's results, ready to be shown."""

    benchmark: Benchmark
    results: BenchmarkResults


def gather_examples(
    adapter: Adapter, scored: Sequence[Scored], config: ReportConfig
) -> dict[str, Any]:
    """What is shown of each benchmark, as JSON: the most confident mistakes both ways and, of
    CAFT's own models alone, whose segments they show, the anatomies of a few images."""
    model = adapter.model if isinstance(adapter, CAFTAdapter) else None
    return {
        "about": about_model(model) if model else "",
        "about_heat": about_heat(model) if model else "",
        "benchmarks": {
            result.benchmark.name: _of_benchmark(model, result, config) for result in scored
        },
    }


def _of_benchmark(model: CAFT | None, result: Scored, config: ReportConfig) -> dict[str, Any]:
    benchmark, ranking = result.benchmark, result.results.ranking
    shown = _spread(benchmark, config.images) if model else []
    wanted = set(shown)
    if ranking is not None:
        by_caption = caption_mistakes(ranking, config.retrievals)
        by_image = image_mistakes(ranking, config.retrievals)
        wanted |= {
            *(int(ranking.text_to_image[mistake.query]) for mistake in by_caption.shown),
            *(image for mistake in by_caption.shown for image, _ in mistake.found),
            *(mistake.query for mistake in by_image.shown),
        }
    # Other models decode with Pillow, as a crop does.
    rule = benchmark.preprocess or (model.config.image.preprocess if model else "crop")
    images = _read_images(benchmark, wanted, rule)
    gallery = _Gallery(benchmark, {n: data_url(to_canvas(image)) for n, image in images.items()})
    anatomies = [
        {"url": benchmark.urls[n]}
        | anatomy(
            model,
            images[n],
            benchmark.regions.get(benchmark.urls[n], ()),
            [
                sentence
                for text in gallery.texts(n)
                for sentence in caption_sentences(
                    benchmark.captions[text], benchmark.rule or model.config.text.sentences
                )
            ],
            config.sentences,
            rule,
        )
        for n in shown
        if model
    ]
    if ranking is None:
        return {"anatomies": anatomies}
    return {
        "anatomies": anatomies,
        "t2i": _counted(by_caption, [gallery.of_caption(mistake) for mistake in by_caption.shown]),
        "i2t": _counted(by_image, [gallery.of_image(mistake) for mistake in by_image.shown]),
    }


@dataclass(frozen=True)
class _Gallery:
    """Mistakes as JSON, with the pictures and captions they are about."""

    benchmark: Benchmark
    pictures: dict[int, str]  # data URI by position

    def of_caption(self, mistake: Mistake) -> dict[str, Any]:
        image = self.benchmark.text_to_image[mistake.query]
        return {
            "caption": self._caption(mistake.query),
            "own": self._picture(image),
            "found": [
                self._picture(n) | {"score": _finite(score), "right": n == image}
                for n, score in mistake.found
            ],
            **_numbers(mistake),
        }

    def of_image(self, mistake: Mistake) -> dict[str, Any]:
        texts = self.texts(mistake.query)
        return {
            **self._picture(mistake.query),
            "own": [self._caption(text) for text in texts[: len(mistake.found)]],
            "found": [
                {
                    "caption": self._caption(text),
                    "score": _finite(score),
                    "right": self.benchmark.text_to_image[text] == mistake.query,
                }
                for text, score in mistake.found
            ],
            **_numbers(mistake),
        }

    def texts(self, image: int) -> list[int]:
        """Positions of an image's captions."""
        return [n for n, owner in enumerate(self.benchmark.text_to_image) if owner == image]

    def _picture(self, image: int) -> dict[str, Any]:
        return {"src": self.pictures[image], "url": self.benchmark.urls[image]}

    def _caption(self, text: int) -> str:
        caption = self.benchmark.captions[text]
        whole = caption if isinstance(caption, str) else f"{JOINER.join(caption)}."
        if len(whole) <= MAX_CAPTION_CHARS:
            return whole
        return whole[:MAX_CAPTION_CHARS].rpartition(" ")[0] + " …"


def _numbers(mistake: Mistake) -> dict[str, float | None]:
    """Rank, score of the right item and lead of the wrong one; None where it dropped out."""
    values = {"rank": mistake.rank, "own_score": mistake.right_score, "lead": mistake.lead}
    return {name: _finite(value) for name, value in values.items()}


def _counted(mistakes: Mistakes, shown: list[dict[str, Any]]) -> dict[str, Any]:
    return {"total": mistakes.total, "queries": mistakes.queries, "shown": shown}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _spread(benchmark: Benchmark, count: int) -> list[int]:
    """Positions spread evenly over the benchmark, of images with regions if there are any."""
    with_regions = [n for n, url in enumerate(benchmark.urls) if benchmark.regions.get(url)]
    positions = with_regions or list(range(len(benchmark.urls)))
    places = np.linspace(0, len(positions) - 1, min(count, len(positions))).round().astype(int)
    return [positions[place] for place in places]


def _read_images(
    benchmark: Benchmark, positions: Iterable[int], rule: PictureRule
) -> dict[int, np.ndarray]:
    """Decode the stored images at some positions of a benchmark."""
    wanted = set(positions)
    ends = [piece.first for piece in benchmark.pieces[1:]] + [len(benchmark.urls)]
    images: dict[int, np.ndarray] = {}
    for piece, end in zip(benchmark.pieces, ends, strict=True):
        here = wanted & set(range(piece.first, end))
        rows = benchmark.rows.read(piece) if here else []
        images |= {n: read_picture(rows[n - piece.first]["image"], rule) for n in here}
    return images
