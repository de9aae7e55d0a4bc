"""Scores all candidates in actors that hold a checkpoint, and names those that agree too little.
After the chunks, before duplicates; a chunk whose scores are written is not scored again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import ray

from pipelines import storage
from pipelines.data.config import SimilarityFilter
from pipelines.data.dedup.duplicates import DROP_SCHEMA
from pipelines.data.paths import ROWS_PER_CHUNK, Layout
from pipelines.data.write import read_table, write_table
from pipelines.failures import attempt, one_voice, value_of

if TYPE_CHECKING:
    from pipelines.data.dedup.similarity import SimilarityScorer

REASON = "low_similarity"


def refuse_dissimilar(
    config: SimilarityFilter | None, layout: Layout, chunks: Sequence[int]
) -> pa.Table:
    """Candidates (`DROP_SCHEMA`) whose images and captions agree less than the filter asks."""
    tables = [DROP_SCHEMA.empty_table()]
    if config is not None:
        todo = [{"chunk": n} for n in chunks if not storage.exists(_path(layout, n))]
        if todo:
            ray.data.DataContext.get_current().enable_progress_bars = False
            results = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
                ChunkScorer,  # type: ignore[arg-type]
                fn_constructor_args=(config, layout),
                compute=ray.data.ActorPoolStrategy(size=config.actors),
                num_gpus=config.gpus_per_actor,
            )
            with one_voice("similarity"):
                for row in results.iter_rows():
                    value_of(json.loads(row["result"]))
        tables += [read_table(_path(layout, number)) for number in chunks]
    return pa.concat_tables(tables)


class ChunkScorer:
    """An actor that scores chunk after chunk."""

    def __init__(self, config: SimilarityFilter, layout: Layout) -> None:
        self._config, self._layout = config, layout
        self._scorer: SimilarityScorer | None = None

    def __call__(self, item: dict[str, int]) -> dict[str, str]:
        number = item["chunk"]
        return {"result": json.dumps(attempt(lambda: self._score(number), f"chunk {number}"))}

    def _score(self, number: int) -> None:
        from pipelines.data.dedup.similarity import (  # and PyTorch, here only
            SimilarityScorer,
            dissimilar,
        )

        self._scorer = self._scorer or SimilarityScorer(self._config)
        candidates = read_table(self._layout.candidate(number)).sort_by("place")
        refused = []
        for start in range(0, len(candidates), self._config.batch_size):
            rows = candidates.slice(start, self._config.batch_size).to_pylist()
            for row, cosine in zip(rows, self._scorer(rows).tolist(), strict=True):
                detail = dissimilar(cosine, self._config)
                if detail is not None:
                    place = number * ROWS_PER_CHUNK + row["place"]
                    refused.append({"row": place, "reason": REASON, "detail": detail})
        write_table(_path(self._layout, number), pa.Table.from_pylist(refused, DROP_SCHEMA))


def _path(layout: Layout, number: int) -> str:
    return storage.join(layout.work, f"similarity-{number:05d}.parquet")
