"""Takes a sample of the sources through the steps of a chunk, and measures what they cost.
What `estimate` predicts from; nothing that is written here is kept."""

from __future__ import annotations

import io
import math
import random
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from caft.errors import DataError
from pipelines.data.chunk import (
    CANDIDATE_SCHEMA,
    INDEX_ROW_GROUP,
    fetch,
    index_row,
    prepare,
    refuse_before_download,
)
from pipelines.data.config import DataConfig, ImageConfig, SourceConfig
from pipelines.data.dataset import DATASET_SCHEMA
from pipelines.data.dedup.decontamination import EvaluationHashes, hash_set
from pipelines.data.dedup.index import INDEX_SCHEMA
from pipelines.data.dedup.urls import EqualUrls
from pipelines.data.files import as_stored
from pipelines.data.images.decoder import Decoder
from pipelines.data.join.flow import join_sample
from pipelines.data.join.values import image_fields
from pipelines.data.plan import in_share
from pipelines.data.sources import is_file, sample_rows
from pipelines.data.write import ParquetSink, read_table

KEPT = "kept"
NOTHING_EQUAL = EqualUrls([], [], None)  # which takes the whole of the lists
LEAST_ROWS = 50  # of each source, however small its share of all rows is
BATCHES = 10  # whose spread says how far the time per row can be trusted
STEADY_SHARE = 0.5  # of the rows must come before the sample runs out, to tell the tail from them


@dataclass(frozen=True)
class Drawn:
    """The sample of one source, and about how many rows it has."""

    name: str
    rows: list[dict[str, Any]]
    total: float


@dataclass(frozen=True)
class SourceProbe:
    """What became of one source's sample; arrays are (n,), a value for each of its rows."""

    name: str
    total: float  # rows of the source
    outcomes: list[str]  # KEPT or a reject reason
    stored_bytes: np.ndarray
    downloaded_bytes: np.ndarray
    cpu_s: np.ndarray


@dataclass(frozen=True)
class Probe:
    """A sample's outcomes, and the time it took one chunk's task on one machine.

    Attributes:
        chunk_cpu_s: that a chunk takes once, before its first image.
        wall_s: per row while the task is busy; in batches of rows, (BATCHES,).
        tail_s: that a chunk waits for its last rows.
        waiting_share: of the task's time, spent waiting for images to arrive.
    """

    sources: list[SourceProbe]
    chunk_cpu_s: float
    wall_s: np.ndarray
    tail_s: float
    waiting_share: float
    elapsed_s: float


def draw(config: DataConfig, rows: int, seed: int) -> list[Drawn]:
    """About `rows` rows over all sources, in proportion to their sizes.

    Raises:
        DataError: as `check_source`, or a source without a row.
    """
    found = [_sample(source, rows, seed, config) for source in config.sources]
    total = sum(size for _, size in found)
    drawn = []
    for source, (sample, size) in zip(config.sources, found, strict=True):
        if not sample:
            raise DataError(f"{source.path}: no row in the sample; give --rows a larger number")
        count = min(len(sample), max(LEAST_ROWS, round(rows * size / total)))
        chosen = random.Random(seed).sample(sample, count)
        if source.weight < 1:
            _leave_out(chosen, source.weight)
        drawn.append(Drawn(source.name, chosen, max(size, len(sample))))
    return drawn


def _sample(
    source: SourceConfig, rows: int, seed: int, config: DataConfig
) -> tuple[list[dict[str, Any]], float]:
    extra = dict.fromkeys([*config.filters.columns, *image_fields(source)])
    sample, size = sample_rows(source, rows, seed, tuple(extra))
    if source.captions_from is not None:
        join_sample(sample, source)
    return sample, size


def probe(config: DataConfig, drawn: Sequence[Drawn]) -> Probe:
    """Download, decode and filter the sample, and write it to a temporary folder as a part.

    Raises:
        DataError: an evaluation image that cannot be decoded, or no decoding process.
    """
    sets = range(len(config.decontamination.sets))
    tables = [hash_set(config.decontamination, number).to_table() for number in sets]
    evaluation = EvaluationHashes.from_table(pa.concat_tables(tables)) if tables else None
    chunk_cpu_s = _decoder_start_s(config.image)
    rows = [row for one in drawn for row in one.rows]
    random.Random(0).shuffle(rows)  # neighbours in a batch shall not be neighbours in a list
    with tempfile.TemporaryDirectory() as folder:
        cpu, started = _cpu_s(), time.perf_counter()
        run = _Run(config, evaluation, Path(folder))
        run.rows(rows)
        wall_s = time.perf_counter() - started
        stored = _rewrite(run.candidates, Path(folder, "part.parquet"), config)
        cpu_s = max(_cpu_s() - cpu - chunk_cpu_s, 1e-9)
    return Probe(
        [_of_source(one, run, stored, cpu_s) for one in drawn],
        chunk_cpu_s,
        run.batch_s(),
        run.tail_s(),
        run.waiting_s / wall_s,
        wall_s,
    )


class _Run:
    """One pass over the sample, as a chunk makes it, and what was noted on the way."""

    def __init__(
        self, config: DataConfig, evaluation: EvaluationHashes | None, folder: Path
    ) -> None:
        self._config, self._evaluation, self._folder = config, evaluation, folder
        self.candidates = folder / "candidates.parquet"
        self.by_source: dict[str, list[tuple[str, int, int, float]]] = {}
        self.waiting_s = 0.0
        self._times: list[float] = []  # at which a row was done
        self._exhausted_s = math.inf  # when the last row was begun

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        config = self._config
        index_path = str(self._folder / "index.parquet")
        planned = refuse_before_download(self._feed(rows), NOTHING_EQUAL, config)
        with (
            Decoder(config.image) as decoder,
            ParquetSink(str(self.candidates), CANDIDATE_SCHEMA, config.row_group_rows) as kept,
            ParquetSink(index_path, INDEX_SCHEMA, INDEX_ROW_GROUP) as index,
        ):
            self._started_s = asked_s = time.perf_counter()
            for row in fetch(planned, config):
                came_s = time.perf_counter()
                self.waiting_s += came_s - asked_s
                online = len(row.get("data") or b"") if row["online"] else 0
                prepare(row, decoder, config, self._evaluation)
                if row["reason"] is None:
                    kept.add(row)
                    index.add(index_row(row))
                asked_s = time.perf_counter()
                self._times.append(asked_s)
                outcome = row["reason"] or KEPT
                size = len(row["image"]) if outcome == KEPT else 0
                noted = (outcome, size, online, asked_s - came_s)
                self.by_source.setdefault(row["source"], []).append(noted)

    def _feed(self, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for place, row in enumerate(rows):
            row["place"] = place
            row["online"] = row["data"] is None and not is_file(row["url"])
            yield row
        self._exhausted_s = time.perf_counter()

    def _busy(self) -> int:
        """Rows that were done before the sample ran out; all, if they are too few to tell."""
        done = sum(at < self._exhausted_s for at in self._times)
        return done if done >= STEADY_SHARE * len(self._times) else len(self._times)

    def batch_s(self) -> np.ndarray:
        """Seconds per row of BATCHES runs of rows, while the task was busy."""
        edges = np.linspace(0, self._busy(), min(BATCHES, self._busy()) + 1).astype(int)
        times = np.array([self._started_s, *self._times])[edges]
        return np.diff(times) / np.diff(edges)

    def tail_s(self) -> float:
        """Between the last row while busy and the last row of all."""
        return max(0.0, self._times[-1] - self._times[self._busy() - 1])


def _of_source(drawn: Drawn, run: _Run, stored: float, cpu_s: float) -> SourceProbe:
    """One source's share of what was measured.

    Args:
        stored: bytes of the part for each byte of its images.
        cpu_s: of all rows. What decoding a row took is its own; the rest is all rows' alike.
    """
    every = [noted for rows in run.by_source.values() for noted in rows]
    own = sum(seconds for _, _, _, seconds in every)
    outcomes, sizes, downloaded, seconds = zip(*run.by_source[drawn.name], strict=True)
    factor = min(1.0, cpu_s / own) if own else 0.0
    rest = max(0.0, cpu_s - own) / len(every)
    return SourceProbe(
        drawn.name,
        drawn.total,
        list(outcomes),
        np.array(sizes) * stored,
        np.array(downloaded, np.float64),
        np.array(seconds) * factor + rest,
    )


def _rewrite(candidates: Path, part: Path, config: DataConfig) -> float:
    """Write candidates as a part; its bytes for each byte of their images."""
    if not candidates.exists():
        return 1.0
    table = read_table(str(candidates)).select(DATASET_SCHEMA.names)
    with ParquetSink(str(part), DATASET_SCHEMA, config.row_group_rows) as sink:
        for start in range(0, len(table), config.row_group_rows):
            sink.extend(as_stored(table.slice(start, config.row_group_rows), config))
    assert sink.entry is not None
    images = sum(len(image) for image in table["image"].to_pylist())
    return float(sink.entry["bytes"] / images)


def _leave_out(rows: Iterable[dict[str, Any]], weight: float) -> None:
    """Reject the rows that the plan would, by their keys."""
    for row in rows:
        if row["reason"] is None and not in_share(row["key"], weight):
            row |= {"reason": "not_sampled", "data": None}


def _decoder_start_s(config: ImageConfig) -> float:
    """CPU seconds of starting a decoding process, which every chunk does once."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "png")
    before = _cpu_s()
    with Decoder(config) as decoder:
        decoder.prepare(stream.getvalue())
    return _cpu_s() - before


def _cpu_s() -> float:
    """Of this process with all its threads, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
