"""Takes one chunk from plan rows to candidates: fetched, decoded, filtered, written, receipted.
The work that a Ray task does; a chunk without a receipt is simply done again."""

from __future__ import annotations

import faulthandler
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any

import pyarrow as pa

from pipelines import storage
from pipelines.data.captions import split_captions
from pipelines.data.config import DataConfig
from pipelines.data.dataset import DATASET_SCHEMA, REJECT_SCHEMA
from pipelines.data.dedup.decontamination import EvaluationHashes, contaminated
from pipelines.data.dedup.index import INDEX_SCHEMA
from pipelines.data.dedup.urls import EqualUrls, moved_captions, with_captions
from pipelines.data.fetch.download import download
from pipelines.data.filters import AFTER_DECODE, BEFORE_DOWNLOAD, apply_filters
from pipelines.data.images.decoder import Decoder
from pipelines.data.images.prepare import ImageRefused
from pipelines.data.join.flow import set_joined
from pipelines.data.join.match import joined_captions
from pipelines.data.join.values import image_fields
from pipelines.data.paths import Chunk, Layout, read_receipt
from pipelines.data.plan import in_share
from pipelines.data.reasons import REASONS
from pipelines.data.seen import Seen
from pipelines.data.sources import LeftOut, fetch_file, is_file, parse_rows, read_container
from pipelines.data.sources.tars import to_its_end
from pipelines.data.write import ParquetSink, read_table
from pipelines.failures import located

# Candidates and rejects know their place in the chunk, in which order the dataset has them.
PLACE = pa.field("place", pa.int32())
CANDIDATE_SCHEMA = DATASET_SCHEMA.append(PLACE)
CANDIDATE_REJECT_SCHEMA = REJECT_SCHEMA.append(PLACE)
PARSE_ROWS = 1_000  # of a plan file, made Python objects at a time
FILE_READERS = 16
INDEX_ROW_GROUP = 10_000


def process_chunk(
    chunk: Chunk,
    equal: EqualUrls,
    config: DataConfig,
    layout: Layout,
    evaluation: EvaluationHashes | None,
) -> dict[str, Any]:
    """Write a chunk's candidates, rejects and index; returns its receipt.

    A chunk is done once, whoever does it: a task that Ray starts again, or one of an earlier
    driver that still runs, leaves what the first receipt stands for as it is.

    Args:
        equal: rows whose URL another row has, and captions that come to the chunk's.
    """
    receipt = layout.receipt("chunk", chunk.number)
    if (done := read_receipt(receipt)) is not None:
        return done
    with suppress(_Overtaken):
        storage.write_json(receipt, _process(chunk, equal, config, layout, evaluation))
    return storage.read_json(receipt)


def _process(
    chunk: Chunk,
    equal: EqualUrls,
    config: DataConfig,
    layout: Layout,
    evaluation: EvaluationHashes | None,
) -> dict[str, Any]:
    watchdog = Watchdog(config.stall_timeout_s)
    left_out = LeftOut()
    rows = read_chunk(chunk, config, layout, equal.moved, left_out)
    rows = refuse_before_download(rows, equal, config)
    reasons: Counter[str] = Counter()
    seen = Seen()
    seconds: defaultdict[str, float] = defaultdict(float)
    count = 0
    with (
        watchdog,
        Decoder(config.image) as decoder,
        ParquetSink(
            layout.candidate(chunk.number), CANDIDATE_SCHEMA, config.row_group_rows
        ) as kept,
        ParquetSink(
            layout.candidate_rejects(chunk.number), CANDIDATE_REJECT_SCHEMA, INDEX_ROW_GROUP
        ) as rejects,
        ParquetSink(layout.index(chunk.number), INDEX_SCHEMA, INDEX_ROW_GROUP) as index,
    ):
        for row in timed(fetch(rows, config), "fetch", seconds):
            watchdog.moved()
            started = time.perf_counter()
            seen.fetched(row)
            with located(f"row {row['url']}"):
                prepare(row, decoder, config, evaluation)
            decoded = time.perf_counter()
            count += 1
            seen.add(row)
            if row["reason"] is None:
                kept.add(row)
                index.add(index_row(row))
            else:
                reasons[row["reason"]] += 1
                rejects.add(reject_row(row))
            seconds["prepare"] += decoded - started
            seconds["write"] += time.perf_counter() - decoded
        if read_receipt(layout.receipt("chunk", chunk.number)) is not None:
            raise _Overtaken
    return {
        "chunk": chunk.number,
        "input_rows": count,
        "kept": kept.entry,
        "rejects": rejects.entry,
        "reasons": dict(reasons),
        **seen.receipt(),
        "left_out": left_out.rows,
        "seconds": {step: round(value, 3) for step, value in seconds.items()},
    }


class _Overtaken(Exception):
    """Another process has finished the chunk meanwhile."""


def read_chunk(
    chunk: Chunk,
    config: DataConfig,
    layout: Layout,
    moved: int | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[dict[str, Any]]:
    """The chunk's rows in order, each with its `place`.

    Args:
        moved: number of the file with captions that come to the chunk's rows.
        left_out: takes note of what a container holds and is not read.
    """
    source = config.sources[chunk.source]
    if chunk.container:
        columns = tuple(dict.fromkeys([*config.filters.columns, *image_fields(source)]))
        container = read_container(chunk.path, source, columns, left_out, chunk.span)
        rows = to_its_end(chunk.path, source, container)
    else:
        table = read_table(storage.join(layout.output, chunk.path))
        if moved is not None:
            table = with_captions(table, moved_captions(layout, moved, chunk.number))
        starts = range(0, len(table), PARSE_ROWS)
        rows = (row for n in starts for row in parse_rows(table.slice(n, PARSE_ROWS), source))
    captions = None if chunk.captions is None else joined_captions(layout, chunk)
    for place, row in enumerate(rows):
        row["place"] = place
        if captions is not None:
            set_joined(row, captions, source)
        if chunk.container and not in_share(row["key"], source.weight):
            row |= {"reason": "not_sampled", "data": None}
        yield row


def refuse_before_download(
    rows: Iterable[dict[str, Any]], equal: EqualUrls, config: DataConfig
) -> Iterator[dict[str, Any]]:
    """Split captions and refuse what needs no image to be refused."""
    duplicates, merged = frozenset(equal.duplicate), frozenset(equal.merged)
    for row in rows:
        if row["reason"] is None and row["place"] in duplicates:
            row |= {"reason": "duplicate_url", "detail": "another row has it with longer captions"}
        if row["reason"] is None and row["place"] in merged:
            row |= {"reason": "merged_captions", "detail": "its captions are with an earlier row"}
        with located(f"row {row['url']}"):
            if row["reason"] is None:
                split_captions(row, config.captions)
            if row["reason"] is None:
                apply_filters(row, config.filters, BEFORE_DOWNLOAD)
        yield row


def fetch(rows: Iterable[dict[str, Any]], config: DataConfig) -> Iterator[dict[str, Any]]:
    """Give every row that has no reason its `data`: over HTTP, or of a file."""
    return download(_fetch_files(rows), config.download)


def prepare(
    row: dict[str, Any],
    decoder: Decoder,
    config: DataConfig,
    evaluation: EvaluationHashes | None,
) -> None:
    """Decode and judge one row's image; sets its image columns or its reason."""
    if row["reason"] is not None:
        return
    known = {name: row[name] for name in ("original_width", "original_height") if row.get(name)}
    try:
        row |= decoder.prepare(row.pop("data")) | known
    except ImageRefused as refusal:
        row["reason"], row["detail"] = refusal.args
        return
    apply_filters(row, config.filters, AFTER_DECODE)
    if row["reason"] is None and evaluation is not None:
        found = contaminated(row["phash"], row["look"], evaluation, config.decontamination.distance)
        if found is not None:
            row["reason"], row["detail"] = "evaluation_image", found


def index_row(row: dict[str, Any]) -> dict[str, Any]:
    """What finding duplicates needs to know of a candidate."""
    return {
        "place": row["place"],
        "key": bytes.fromhex(row["key"]),
        "sha256": bytes.fromhex(row["sha256"])[:16],
        "phash": row["phash"],
        "look": row["look"],
        "characters": sum(len(s) for entry in row["captions"] for s in entry["sentences"]),
    }


def reject_row(row: dict[str, Any]) -> dict[str, Any]:
    detail = (row.get("detail") or "")[:300]
    return row | {"stage": REASONS[row["reason"]].stage, "detail": detail}


def timed(
    rows: Iterator[dict[str, Any]], step: str, seconds: defaultdict[str, float]
) -> Iterator[dict[str, Any]]:
    """The same rows; adds the time spent waiting for them."""
    while True:
        started = time.perf_counter()
        row = next(rows, None)
        seconds[step] += time.perf_counter() - started
        if row is None:
            return
        yield row


class Watchdog:
    """Ends this process, with every thread's stack in its log, when no row moves for too long.

    Ray then starts the chunk again elsewhere: a job's last chunk cannot hang it.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s, self._armed = timeout_s, 0.0

    def moved(self) -> None:
        now = time.monotonic()
        if now - self._armed > min(1.0, self._timeout_s / 10):
            self._armed = now
            faulthandler.dump_traceback_later(self._timeout_s, exit=True)

    def __enter__(self) -> None:
        self.moved()

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()


def _fetch_file(row: dict[str, Any]) -> None:
    with located(f"row {row['url']}"):
        fetch_file(row)


def _fetch_files(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Read the files of rows whose URL is a path, some ahead of the consumer."""
    rows = iter(rows)
    with ThreadPoolExecutor(FILE_READERS) as readers:
        while batch := list(islice(rows, 4 * FILE_READERS)):
            waiting = [
                row
                for row in batch
                if row["reason"] is None and row["data"] is None and is_file(row["url"])
            ]
            list(readers.map(_fetch_file, waiting))
            yield from batch
