"""The embed stage's flow: plan, pieces, part files, manifest; what is finished is kept.
Every file appears complete and the manifest last, so a run that was killed anywhere continues."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from caft import __version__
from caft.config import to_yaml
from caft.errors import ClusterError, ConfigError, DataError
from caft.scoring import CAFTScorer
from pipelines import storage, user_paths
from pipelines.behaviours import numbers
from pipelines.data.config import DataConfig
from pipelines.data.dataset import REJECT_SCHEMA
from pipelines.data.files import await_temporaries, delete_temporaries, group_chunks
from pipelines.data.paths import IDENTITY, Chunk, Layout
from pipelines.data.plan import Plan, make_plan
from pipelines.data.sources import source_identity
from pipelines.data.sources.check import check_source
from pipelines.data.stage import summary
from pipelines.data.write import ParquetSink, read_table
from pipelines.embed.config import EmbedConfig
from pipelines.embed.embedding import MANIFEST, SCHEMA_VERSION
from pipelines.embed.encode import PieceEncoder
from pipelines.embed.pieces import PLACE, finished_chunks, pieces_of, read_chunk_rows
from pipelines.embed.read import REJECTS_GROUP, Reader
from pipelines.evaluate.adapters import Adapter
from pipelines.evaluate.adapters.own import CAFTAdapter
from pipelines.evaluate.checkpoints import Checkpoint, open_checkpoints
from pipelines.failures import one_voice
from pipelines.identity import (
    first_difference,
    require_same,
    require_same_behaviour,
    require_same_config,
)
from pipelines.progress import Progress
from pipelines.tracking import About, DatasetUse, EventLog, Tracker, send_rest
from pipelines.workers import cluster_cpus, run_tasks

CONFIG_COPY = "embed.yaml"
# What may differ when a run is resumed: it changes the speed, not the rows.
FREE_FIELDS = {
    *("tracking", "progress_every_s", "output", "batch_size", "concurrency"),
    *("num_gpus_per_actor", "piece_mb", "checkpoint"),  # which is known by its fingerprint
}
BEHAVIOURS = ("pictures",)  # that decide rows though no key does
BYTES_PER_ROW = 2_000  # rough need of disk, to refuse work that cannot fit; with `whole` alone
READER_CPUS = 0.5  # half of it waits for its source
PASSES = 3  # over what a pass did not finish, because workers died


def run(config: EmbedConfig) -> None:
    """Embed a source, or finish what was begun with the same configuration.

    Raises:
        DataError: a source that cannot be used, or not one image that could be read.
        CheckpointError: a checkpoint that cannot be loaded, or gives no numbers.
        ConfigError: the output holds another embedding, or the model has no fine embeddings.
        StorageError: the output cannot be written.
    """
    output = user_paths.usable_path(config.output, "output", folder=True).rstrip("/")
    source = user_paths.usable_path(config.source.path, "source.path")
    images = config.source.model_copy(update={"path": source})
    checkpoint = open_checkpoint(config.checkpoint)
    changes = {"output": output, "source": images, "checkpoint": checkpoint.place}
    config = config.model_copy(update=changes)
    adapter = checkpoint.open()
    scorer = adapter.scorer()
    if config.fine and not (isinstance(scorer, CAFTScorer) and "part" in scorer.components):
        raise ConfigError(
            f"fine: {checkpoint.place} has no parts, so there are no fine embeddings to keep; "
            "leave fine out"
        )
    data = config.as_data()
    check_source(data.sources[0])
    _claim(config, data, checkpoint)
    layout = Layout(output)
    if storage.exists(storage.join(output, MANIFEST)):
        manifest = storage.read_json(storage.join(output, MANIFEST))
        _delete_work(layout)  # a run may have ended between manifest and this
        send_rest(config.tracking, output, "FINISHED")
        print(f"embed: finished before: {output}\n{summary(manifest['counts'])}", flush=True)
        return
    delete_temporaries(layout)
    try:
        _make(config, data, layout, checkpoint, adapter)
    except BaseException:  # Ctrl-C too: what is not complete goes, what is complete stays
        await_temporaries(layout)
        raise


def open_checkpoint(name: str) -> Checkpoint:
    """The one checkpoint of a name. Errors as `open_checkpoints`, and ConfigError where a training
    has kept several."""
    found = open_checkpoints([name])
    if len(found) > 1:
        raise ConfigError(
            f"checkpoint: {name} holds {len(found)} checkpoints; name one of them, such as "
            f"{found[-1].place}"
        )
    return found[0]


def model_of(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, Any]:
    """What an embedding says of the model that made it, by which a search knows it again."""
    config = {}
    if isinstance(adapter, CAFTAdapter):
        config = adapter.model.config.model_dump(mode="json")
    return {
        "checkpoint": checkpoint.place,
        "fingerprint": checkpoint.fingerprint,
        "name": checkpoint.model,
        "step": checkpoint.step,
        "config": config,
    }


def _claim(config: EmbedConfig, data: DataConfig, checkpoint: Checkpoint) -> None:
    """Store what is asked for with the output, or refuse an output of something else."""
    output = config.output
    copy, path = storage.join(output, CONFIG_COPY), storage.join(output, IDENTITY)
    now = {"source": source_identity(data.sources[0]), "checkpoint": checkpoint.fingerprint}
    if storage.exists(copy):
        is_finished = storage.exists(storage.join(output, MANIFEST))
        holds = "an embedding" if is_finished else "an unfinished embedding"
        require_same_config(output, holds, copy, config, FREE_FIELDS)
        then = storage.read_json(path)
        behaviours = then.pop("behaviours", {})
        require_same(output, holds, first_difference(then, now))
        if not is_finished:  # a finished one is read as what it was
            require_same_behaviour(output, holds, behaviours, BEHAVIOURS)
        return
    storage.write_json(path, now | {"behaviours": numbers(BEHAVIOURS)})
    storage.write_bytes(copy, to_yaml(config).encode())  # last: it says that the output was begun


def _make(
    config: EmbedConfig, data: DataConfig, layout: Layout, checkpoint: Checkpoint, adapter: Adapter
) -> None:
    plan = make_plan(data, layout)
    if not storage.exists(layout.work):
        rows = sum(chunk.rows or 0 for chunk in plan.chunks)
        user_paths.check_space(layout.output, rows * BYTES_PER_ROW)
    about = About(
        "embed",
        f"{checkpoint.model} {config.source.path.rstrip('/').rpartition('/')[2]}",
        f"Embeds the images of {config.source.path} by `{checkpoint.place}`.",
        config.output,
    )
    links = {"train": checkpoint.run_id}
    log, inputs = EventLog(config.output, "embed"), checkpoint.trained_in
    with Tracker.start(config.tracking, about, config, log, links, inputs=inputs) as tracker:
        started = time.monotonic()
        before = sum(p.rows for pieces in pieces_of(layout).values() for p in pieces)
        receipts = _embed(config, data, layout, plan, adapter)
        seconds = time.monotonic() - started
        entries = _write_files(config, data, layout, plan, receipts)
        rejected = Counter[str]()
        for entry in entries["rejects"]:
            rejected.update(entry["reasons"])
        kept = sum(entry["rows"] for entry in entries["files"])
        counts = {
            "input_rows": kept + sum(rejected.values()),
            "kept": kept,
            "rejected": dict(sorted(rejected.items())),
        }
        if not kept:
            raise DataError(
                f"{config.output}: {summary(counts)}; fix the cause, then delete the folder and "
                "run again"
            )
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "created_by": f"caft {__version__}",
            "config": config.model_dump(mode="json"),
            "model": model_of(checkpoint, adapter) | {"width": entries["width"]},
            "input_fingerprint": plan.fingerprint,
            "files": entries["files"],
            "rejects": entries["rejects"],
            "counts": counts,
            "mlflow_run_id": tracker.run_id,
        }
        storage.write_json(storage.join(layout.output, MANIFEST), manifest)
        _delete_work(layout)
        numbers = {"input_rows": counts["input_rows"], "kept": kept}
        numbers |= {f"rejected/{reason}": n for reason, n in rejected.items()}
        tracker.log_metrics(numbers | {"rows_per_s": (kept - before) / max(seconds, 1e-9)})
        profile = {"num_rows": counts["input_rows"]}
        name = config.source.path.rstrip("/").rpartition("/")[2]
        tracker.log_datasets(
            [DatasetUse(name, plan.fingerprint, config.source.path, profile, "source")]
        )
    print(f"embed: finished: {config.output}\n{summary(counts)}", flush=True)


def _embed(
    config: EmbedConfig, data: DataConfig, layout: Layout, plan: Plan, adapter: Adapter
) -> dict[int, dict[str, Any]]:
    """Receipts of all chunks, with the missing pieces made."""
    for _ in range(PASSES):
        finished = finished_chunks(layout, plan.chunks)
        todo = [chunk for chunk in plan.chunks if chunk.number not in finished]
        if not todo:
            return finished
        _run_pass(config, data, layout, plan, todo, adapter)
    finished = finished_chunks(layout, plan.chunks)
    if len(finished) < len(plan.chunks):
        raise ClusterError(
            f"embed: {len(plan.chunks) - len(finished)} of {len(plan.chunks)} chunks are not "
            f"complete after {PASSES} passes; see the workers' logs, and run the same command again"
        )
    return finished


def _run_pass(
    config: EmbedConfig,
    data: DataConfig,
    layout: Layout,
    plan: Plan,
    todo: Sequence[Chunk],
    adapter: Adapter,
) -> None:
    """Read and embed what some chunks lack, on all workers of the cluster."""
    pieces = pieces_of(layout)
    items = [
        {
            "item": json.dumps(
                {
                    "chunk": asdict(chunk),
                    "pieces": [piece.name for piece in pieces.get(chunk.number, ())],
                }
            )
        }
        for chunk in todo
    ]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = False
    size_before, context.target_max_block_size = (
        context.target_max_block_size,
        config.piece_mb * 2**20,
    )
    reader = Reader(data, layout, adapter.preprocess(), config.images, config.batch_size)
    gpus, cpus = config.num_gpus_per_actor, cluster_cpus()
    threads = max(1, cpus // config.concurrency)
    # Beside the actors there have to be resources for a reader; and never as many for an actor as
    # for a reader, or Ray would run both in one process, one after the other.
    actor_cpus = min(1.0, 0.99 * (cpus - READER_CPUS) / config.concurrency)
    embedded = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(reader, batch_size=1, num_cpus=READER_CPUS)
        .map_batches(
            PieceEncoder,
            fn_constructor_args=(
                *(config.checkpoint, layout, config.fine, config.batch_size),
                *(gpus > 0, threads),
            ),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=config.concurrency),
            num_cpus=round(actor_cpus, 4),
            num_gpus=gpus,
        )
    )
    total = sum(chunk.rows or 0 for chunk in plan.chunks)
    known = all(chunk.rows is not None for chunk in plan.chunks)
    done = sum(piece.rows for found in pieces.values() for piece in found)
    progress = _Rows(config, total if known else None, done)
    try:
        with one_voice("embed"):
            for batch in embedded.iter_batches(batch_size=None):
                progress.add(batch)
    finally:
        context.target_max_block_size = size_before


class _Rows:
    """Progress in embedded rows; where nobody knows how many there are, without a share."""

    def __init__(self, config: EmbedConfig, total: int | None, done: int) -> None:
        self._progress = Progress("embed", total, "rows", config.progress_every_s, done)
        self._rejected: dict[int, Mapping[str, int]] = {}

    def add(self, batch: Mapping[str, Any]) -> None:
        for chunk, rows, reasons in zip(
            *(batch[n] for n in ("chunk", "rows", "reasons")), strict=True
        ):
            before = sum(self._rejected.get(int(chunk), {}).values())
            self._rejected[int(chunk)] = json.loads(reasons)
            rejected = sum(self._rejected[int(chunk)].values()) - before
            every = Counter[str]()
            for found in self._rejected.values():
                every.update(found)
            self._progress.update(int(rows) + max(0, rejected), **every)


def _write_files(
    config: EmbedConfig,
    data: DataConfig,
    layout: Layout,
    plan: Plan,
    receipts: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    """The entries of part files and rejects, `files` and `rejects`, and the `width` of a row."""
    pieces = pieces_of(layout)
    with_rows = [piece for found in pieces.values() for piece in found]
    if not with_rows:
        groups = [[chunk.number for chunk in plan.chunks]]
    else:
        sizes = storage.file_sizes(layout.work)
        of_chunk = {n: sum(sizes[p.name] for p in found) for n, found in pieces.items()}
        groups = group_chunks(plan.chunks, of_chunk, config.file_mb * 2**20)

    def work(number: int) -> dict[str, Any]:
        return write_part(number, groups[number], layout, data.row_group_rows)

    done = dict(run_tasks("files", work, range(len(groups)), cluster_cpus()))
    written = [done[number] for number in range(len(groups))]
    for number, receipt in receipts.items():
        stored = sum(entry["chunks"].get(str(number), 0) for entry in written)
        assert stored == receipt["kept"], f"chunk {number}: rows lost"
    return {
        "files": [entry["part"] for entry in written if entry["part"]],
        "rejects": [entry["rejects"] for entry in written if entry["rejects"]],
        "width": max(entry["width"] for entry in written),
    }


def write_part(
    number: int, chunks: Sequence[int], layout: Layout, row_group_rows: int
) -> dict[str, Any]:
    """Write one part and the rejects of its chunks.

    Returns:
        the manifest's entries `part` and `rejects`, each None without rows; `chunks`, each one's
        rows; and the embedding's `width`.
    """
    pieces, counts, width = pieces_of(layout), {}, 0
    name, rejects_name = layout.part(number), layout.rejects(number)
    reasons = Counter[str]()
    first = next((pieces[n][0] for n in chunks if n in pieces), None)
    part: ParquetSink | None = None
    if first is not None:
        schema = read_table(storage.join(layout.work, first.name)).schema
        schema = pa.schema([field for field in schema if field.name != PLACE.name])
        width = schema.field("whole").type.list_size
        with ParquetSink(storage.join(layout.output, name), schema, row_group_rows) as part:
            for chunk in chunks:
                counts[str(chunk)] = 0
                for table in read_chunk_rows(
                    layout, chunk, sorted(pieces.get(chunk, []), key=_first)
                ):
                    part.extend(table)
                    counts[str(chunk)] += len(table)
    with ParquetSink(
        storage.join(layout.output, rejects_name), REJECT_SCHEMA, REJECTS_GROUP
    ) as rejects:
        for chunk in chunks:
            path = layout.candidate_rejects(chunk)
            if storage.read_json(layout.receipt("chunk", chunk))["rejects"]:
                table = read_table(path).sort_by(PLACE.name)
                reasons.update(table["reason"].to_pylist())
                rejects.extend(table.select(REJECT_SCHEMA.names))
    gone = rejects.entry and {"name": rejects_name, "reasons": dict(reasons), **rejects.entry}
    kept = part.entry if part is not None else None
    return {
        "part": kept and {"name": name, **kept},
        "rejects": gone,
        "chunks": counts,
        "width": width,
    }


def _first(piece: Any) -> int:
    return int(piece.first)


def _delete_work(layout: Layout) -> None:
    for folder in (layout.work, layout.plan):
        storage.delete_folder(folder)
