"""Tries rejected rows of a finished dataset again, and adds those that now succeed to it.
Run as `python -m pipelines.data retry PATH --reason timeout,dns,http_5xx`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caft.config import validate
from caft.errors import ConfigError, DataError
from caft.old_keys import completed
from caft.overrides import apply_override
from pipelines import storage, user_paths
from pipelines.data.config import DataConfig
from pipelines.data.dataset import MANIFEST, REJECT_SCHEMA, Dataset, RejectsEntry, open_dataset
from pipelines.data.dedup.index import INDEX_SCHEMA
from pipelines.data.dedup.urls import no_equal_urls, planned_with_captions
from pipelines.data.files import (
    REJECTS_ROW_GROUP,
    await_temporaries,
    delete_leftovers,
    delete_temporaries,
)
from pipelines.data.paths import Chunk, Layout
from pipelines.data.plan import Plan, load_plan, write_plan
from pipelines.data.reasons import REASONS
from pipelines.data.sources.raw import RAW_SCHEMA, caption_characters, text_keys
from pipelines.data.stage import BEHAVIOURS, Entries, about, build, finish, make_manifest
from pipelines.data.write import ParquetSink, read_table, write_table
from pipelines.identity import require_same_behaviour
from pipelines.tracking import EventLog, Tracker, send_rest

FIRST_KNOWN = 2**24  # numbers of the indices of what the dataset holds, beyond those of chunks
# Reasons that another try may change: the rest follow from the list and the configuration.
_TRIED = [name for name, reason in REASONS.items() if reason.stage in ("download", "image")]
LONGEST = np.iinfo(np.int32).max  # captions that long are kept against any other's


def retry(path: str, reasons: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Fetch again what was rejected for one of `reasons`.

    Rows that are kept go into new parts; those already in the dataset stay whatever is found.

    Args:
        overrides: `download.key=value`, for instance longer time-outs.

    Raises:
        ConfigError: an unknown reason, an override of what decides the rows, or an unfinished
            retry for other reasons.
        DataError: no finished dataset, or no row to try again.
    """
    path = user_paths.usable_path(path, "dataset").rstrip("/")
    dataset = open_dataset(path)
    config = _configuration(dataset, reasons, overrides)
    layout = Layout(path, dataset.manifest["generation"] + 1)
    delete_leftovers(path, dataset.manifest)  # an earlier retry may have ended before it did
    delete_temporaries(layout)
    try:
        _retry(dataset, config, layout, reasons)
    except BaseException:  # Ctrl-C too: what is not whole goes, what is whole stays
        await_temporaries(layout)
        raise


def _retry(dataset: Dataset, config: DataConfig, layout: Layout, reasons: Sequence[str]) -> None:
    plan = _plan(dataset, config, layout, reasons)
    rows = sum(chunk.rows or 0 for chunk in plan.chunks)
    print(f"data: {rows:,} rows to try again: {', '.join(reasons)}", flush=True)
    again = about(config, f"Tries {rows:,} rejected rows again ({', '.join(reasons)}).")
    send_rest(config.tracking, layout.output)
    log = EventLog(layout.output, f"retry-{layout.generation}")
    with Tracker.start(
        config.tracking, again, config, log, earlier=layout.tracked_run()
    ) as tracker:
        known = _index_known(dataset, layout)
        added = build(config, layout, plan, known)
        merged = Entries(
            files=[*map(asdict, dataset.files), *added.files],
            rejects=[*_rest(dataset, layout, set(reasons)), *added.rejects],
            input_rows=dataset.manifest["counts"]["input_rows"],
            texts={name: s.get("texts", {}) for name, s in dataset.manifest["sources"].items()},
            work={name: s.get("work", {}) for name, s in dataset.manifest["sources"].items()},
        )
        fingerprint = dataset.manifest["input_fingerprint"]
        manifest = make_manifest(config, fingerprint, merged, layout.generation, tracker.run_id)
        finish(layout, manifest, merged.input_rows, tracker)


def _configuration(
    dataset: Dataset, reasons: Sequence[str], overrides: Sequence[str]
) -> DataConfig:
    for reason in reasons:
        if reason not in REASONS:
            raise ConfigError(f"--reason: '{reason}' is none of {', '.join(_TRIED)}")
        if reason not in _TRIED:
            raise ConfigError(
                f"--reason: '{reason}' would be the same another time; give some of "
                f"{', '.join(_TRIED)}"
            )
    for override in overrides:
        if not override.startswith(("download.", "tracking.", "concurrency=", "progress_every_s=")):
            raise ConfigError(f"{override}: a retry changes only how rows are downloaded")
    begun = dataset.manifest.get("behaviours", {})
    require_same_behaviour(dataset.path, "a dataset", begun, BEHAVIOURS)
    stored = completed(DataConfig, dataset.manifest["config"]) | {"output": dataset.path}
    for override in overrides:
        apply_override(stored, override)
    return validate(DataConfig, stored, source=f"{dataset.path}/{MANIFEST}")


def _plan(dataset: Dataset, config: DataConfig, layout: Layout, reasons: Sequence[str]) -> Plan:
    asked = storage.join(layout.plan, "reasons.json")
    if storage.exists(asked) and (begun := storage.read_json(asked)) != sorted(reasons):
        raise ConfigError(
            f"{layout.plan}: a retry with --reason {','.join(begun)} has not finished; run that "
            "again first, or delete the folder"
        )
    if not storage.exists(storage.join(layout.plan, "plan.json")):
        storage.write_json(asked, sorted(reasons))
        names = [source.name for source in config.sources]
        chunks: list[Chunk] = []
        for source, table in _rejected_rows(dataset, set(reasons), config.chunk_rows):
            path = storage.join(layout.plan, f"{len(chunks):05d}.parquet")
            write_table(path, table)
            number = names.index(source)
            chunks.append(Chunk(len(chunks), number, layout.relative(path), len(table)))
        if not chunks:
            storage.delete_folder(layout.plan)
            raise DataError(f"{dataset.path}: no row was rejected for {', '.join(reasons)}")
        no_equal_urls(layout)
        write_plan(layout, chunks, dataset.manifest["input_fingerprint"])
    return load_plan(layout)


def _rejected_rows(
    dataset: Dataset, reasons: set[str], chunk_rows: int
) -> Iterator[tuple[str, pa.Table]]:
    """Planned rows of rejects with one of the reasons, in tables of one source each."""
    waiting: list[pa.Table] = []
    source = ""
    for entry in dataset.rejects:
        if entry.plan is None or not reasons & set(entry.reasons):
            continue
        if waiting and (entry.source != source or sum(map(len, waiting)) >= chunk_rows):
            yield source, pa.concat_tables(waiting)
            waiting = []
        source = entry.source
        keys = _retried(dataset, entry, reasons)["key"].to_pylist()
        planned = _planned(entry.plan, Layout(dataset.path), keys)
        # What another program failed to fetch was rejected by the plan.
        again = pc.is_in(planned["reason"], value_set=pa.array(sorted(reasons)))
        reason = pc.if_else(again, pa.scalar(None, pa.string()), planned["reason"])
        waiting.append(planned.set_column(RAW_SCHEMA.get_field_index("reason"), "reason", reason))
    if waiting:
        yield source, pa.concat_tables(waiting)


def _retried(dataset: Dataset, entry: RejectsEntry, reasons: set[str]) -> pa.Table:
    table = read_table(storage.join(dataset.path, entry.name))
    return table.filter(pc.is_in(table["reason"], value_set=pa.array(sorted(reasons))))


def _planned(path: str, layout: Layout, keys: Sequence[str]) -> pa.Table:
    """The rows of a plan file that were tried under these keys: of equal URLs the one with the
    longest captions, those that came to it included."""
    table = planned_with_captions(path, layout)
    wanted = {bytes.fromhex(key) for key in keys}
    characters = caption_characters(table).to_pylist()
    best: dict[bytes, int] = {}
    for place, key in enumerate(one.tobytes() for one in text_keys(table["url"].to_pylist())):
        if key in wanted and (key not in best or characters[place] > characters[best[key]]):
            best[key] = place
    return table.take(sorted(best.values()))


def _index_known(dataset: Dataset, layout: Layout) -> list[int]:
    """Write indices of the rows that the dataset holds; their chunk numbers."""
    numbers = []
    for n, entry in enumerate(dataset.files):
        numbers.append(FIRST_KNOWN + n)
        if storage.exists(layout.index(numbers[-1])):
            continue
        path = storage.join(dataset.path, entry.name)
        table = read_table(path, ["key", "sha256", "phash", "look"])
        columns = {
            "place": pa.array(range(len(table)), pa.int32()),
            "key": [bytes.fromhex(key) for key in table["key"].to_pylist()],
            "sha256": [bytes.fromhex(digest)[:16] for digest in table["sha256"].to_pylist()],
            "phash": table["phash"],
            "look": table["look"],
            "characters": pa.array([LONGEST] * len(table), pa.int32()),
        }
        write_table(layout.index(numbers[-1]), pa.table(columns, schema=INDEX_SCHEMA))
    return numbers


def _rest(dataset: Dataset, layout: Layout, reasons: set[str]) -> list[dict[str, Any]]:
    """The entries of the rejects that were not tried again, in new files where some were."""
    entries = []
    for n, entry in enumerate(dataset.rejects):
        if entry.plan is None or not reasons & set(entry.reasons):
            entries.append(asdict(entry))
            continue
        table = read_table(storage.join(dataset.path, entry.name))
        stays = pc.invert(pc.is_in(table["reason"], value_set=pa.array(sorted(reasons))))
        name = layout.rejects(n).replace(".parquet", "-rest.parquet")
        path = storage.join(dataset.path, name)
        with ParquetSink(path, REJECT_SCHEMA, REJECTS_ROW_GROUP) as sink:
            sink.extend(table.filter(stays))
        left = {reason: count for reason, count in entry.reasons.items() if reason not in reasons}
        if sink.entry is not None:
            entries.append(asdict(entry) | {"name": name, "reasons": left} | sink.entry)
    return entries
