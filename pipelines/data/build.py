"""From a plan to the entries of a manifest, on the cluster: chunks, then drops, then files.
The first generation of a dataset and every retry of it go this way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from caft.errors import ConfigError
from pipelines import storage
from pipelines.data.chunk import process_chunk
from pipelines.data.config import DataConfig, SourceConfig
from pipelines.data.dataset import read_manifest
from pipelines.data.drops import drops_path, find_drops
from pipelines.data.evaluation_images import all_evaluation_hashes, check_evaluation_sets
from pipelines.data.filters import check_filters
from pipelines.data.finish import group_chunks, write_files
from pipelines.data.layout import Chunk, Layout
from pipelines.data.plan import Plan, url_duplicates
from pipelines.data.similarity_pass import refuse_dissimilar
from pipelines.data.sources import check_source, detect_kind
from pipelines.metrics import report_rows
from pipelines.progress import Progress
from pipelines.workers import cluster_cpus, run_tasks

CHUNK_CPUS = 0.5  # two chunks share a core: one decodes while the other waits for its last rows
RECEIPT_READERS = 16


@dataclass(frozen=True)
class Entries:
    """What a generation adds to the manifest."""

    files: list[dict[str, Any]]
    rejects: list[dict[str, Any]]
    input_rows: int


def check(config: DataConfig) -> None:
    """Look at everything that a run will read, so that a wrong path fails at once.

    Raises:
        ConfigError, DataError: what is wrong, and how to mend it.
    """
    check_filters(config.filters)
    similarity = config.filters.similarity
    if similarity and not storage.exists(similarity.checkpoint):
        raise ConfigError(
            f"filters.similarity.checkpoint: {similarity.checkpoint}: no such file or folder"
        )
    for source in config.sources:
        check_source(source)
        _check_split_mode(source, config)
    check_evaluation_sets(config.decontamination)


def _check_split_mode(source: SourceConfig, config: DataConfig) -> None:
    """A dataset's sentences are kept as they are, and a model is scored by the rule that its
    dataset names: there can be one only."""
    if detect_kind(source) != "dataset":
        return
    theirs, ours = read_manifest(source.path).split_mode, config.captions.split_mode
    if theirs != ours:
        raise ConfigError(
            f"captions.split_mode: '{ours}', but the sentences of source '{source.name}' "
            f"({source.path}) were split by '{theirs}'; set captions.split_mode={theirs}"
        )


def build(config: DataConfig, layout: Layout, plan: Plan, known: Sequence[int] = ()) -> Entries:
    """Carry out a plan; what an earlier run of it finished is kept.

    Args:
        known: chunks whose indices stand for rows that the dataset holds already.
    """
    cpus = cluster_cpus()
    chunk_tasks = config.concurrency or max(1, round(cpus / CHUNK_CPUS))
    receipts = _process_chunks(config, layout, plan, chunk_tasks)
    with_rows = [number for number, receipt in receipts.items() if receipt["kept"]]
    if not storage.exists(drops_path(layout)):
        refused = refuse_dissimilar(config.filters.similarity, layout, with_rows)
        find_drops(config, layout, with_rows, known, refused, cpus)
    sizes = {number: receipts[number]["kept"]["bytes"] for number in with_rows}
    groups = group_chunks(plan.chunks, sizes, config.file_mb * 2**20)
    written = _write_groups(config, layout, plan, groups, cpus)
    return Entries(
        files=[entries["part"] for entries in written if entries["part"]],
        rejects=[entry for entries in written for entry in entries["rejects"]],
        input_rows=sum(receipt["input_rows"] for receipt in receipts.values()),
    )


def _process_chunks(
    config: DataConfig, layout: Layout, plan: Plan, concurrency: int
) -> dict[int, dict[str, Any]]:
    """Every chunk's receipt, in order, with the missing ones made."""
    receipts = _receipts(layout, "chunk")
    todo = [chunk for chunk in plan.chunks if chunk.number not in receipts]
    if todo:
        places = url_duplicates(plan, config, layout, concurrency)
        evaluation = all_evaluation_hashes(config.decontamination, layout, concurrency)
        items = [[asdict(chunk), places.get(chunk.number, [])] for chunk in todo]

        def work(item: list[Any]) -> dict[str, Any]:
            chunk, duplicates = item
            return process_chunk(Chunk(**chunk), duplicates, config, layout, evaluation)

        reported = _Reported(plan, config)
        for receipt in receipts.values():
            reported.add(receipt)
        for _, receipt in run_tasks("chunk", work, items, concurrency, CHUNK_CPUS):
            receipts[receipt["chunk"]] = receipt
            reported.add(receipt)
    return {chunk.number: receipts[chunk.number] for chunk in plan.chunks}


def _write_groups(
    config: DataConfig, layout: Layout, plan: Plan, groups: list[list[int]], concurrency: int
) -> list[dict[str, Any]]:
    done = _receipts(layout, "files")

    def work(number: int) -> dict[str, Any]:
        chunks = [plan.chunks[n] for n in groups[number]]
        return write_files(number, chunks, config, layout)

    todo = [number for number in range(len(groups)) if number not in done]
    for number, entries in run_tasks("files", work, todo, concurrency):
        done[number] = entries
    return [done[number] for number in range(len(groups))]


def _receipts(layout: Layout, step: str) -> dict[int, dict[str, Any]]:
    """Receipts that are there, by number."""
    names = [name for name in storage.list_files(layout.work, ".json") if name.startswith(step)]
    paths = [storage.join(layout.work, name) for name in names]
    with ThreadPoolExecutor(RECEIPT_READERS) as readers:
        receipts = list(readers.map(storage.read_json, paths))
    return {
        int(name.removesuffix(".json").rsplit("-", 1)[-1]): receipt
        for name, receipt in zip(names, receipts, strict=True)
    }


class _Reported:
    """Progress in rows, or in chunks where some do not know their rows before they are read."""

    def __init__(self, plan: Plan, config: DataConfig) -> None:
        self._in_rows = all(chunk.rows is not None for chunk in plan.chunks)
        total = sum(chunk.rows or 0 for chunk in plan.chunks)
        size, unit = (total, "rows") if self._in_rows else (len(plan.chunks), "chunks")
        self._progress = Progress("data", size, unit, config.progress_every_s)
        self._run = config.output.rsplit("/", 1)[-1]
        self._kept, self._rejected = 0, Counter[str]()

    def add(self, receipt: dict[str, Any]) -> None:
        self._rejected.update(receipt["reasons"])
        self._kept += receipt["input_rows"] - sum(receipt["reasons"].values())
        report_rows(self._run, self._kept, self._rejected)
        done = receipt["input_rows"] if self._in_rows else 1
        self._progress.update(done, **self._rejected)
