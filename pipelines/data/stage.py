"""The data stage's flow: plan, chunks, duplicates, files, manifest; each step's results are kept.
Every file is written whole and every receipt last, so a run that was ended anywhere goes on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from caft import __version__
from caft.config import to_yaml
from caft.errors import ConfigError, DataError
from pipelines import storage, user_paths
from pipelines.behaviours import numbers
from pipelines.data.chunk import process_chunk
from pipelines.data.config import DataConfig, SourceConfig
from pipelines.data.dataset import MANIFEST, SCHEMA_VERSION, count_captions, read_manifest, use_of
from pipelines.data.dedup.decontamination import all_evaluation_hashes, check_evaluation_sets
from pipelines.data.dedup.duplicates import drops_path, find_drops
from pipelines.data.dedup.similarity_pass import refuse_dissimilar
from pipelines.data.dedup.urls import EqualUrls, equal_urls
from pipelines.data.files import (
    await_temporaries,
    delete_leftovers,
    delete_temporaries,
    group_chunks,
    write_files,
)
from pipelines.data.filters import check_filters
from pipelines.data.paths import CONFIG_COPY, IDENTITY, Chunk, Layout, read_receipt
from pipelines.data.plan import Plan, make_plan
from pipelines.data.seen import texts_of, work_of
from pipelines.data.sources import detect_kind, source_identity
from pipelines.data.sources.check import check_source
from pipelines.data.stats import PAGE, publish
from pipelines.identity import (
    first_difference,
    require_same,
    require_same_behaviour,
    require_same_config,
)
from pipelines.progress import Progress
from pipelines.prometheus import report_rows
from pipelines.tracking import About, DatasetUse, EventLog, Tracker, send_rest
from pipelines.workers import cluster_cpus, run_tasks

# What may differ when a run is taken up again: it changes the speed, not the rows.
FREE_FIELDS = {"tracking", "progress_every_s", "concurrency", "output", "stall_timeout_s"}
BEHAVIOURS = ("captions", "pictures")  # that decide rows though no key does
# Rough need of disk, to refuse work that cannot fit before it starts.
BYTES_PER_ROW = 20_000
CHUNK_CPUS = 0.5  # two chunks share a core: one decodes while the other waits for its last rows
RECEIPT_READERS = 16


def run(config: DataConfig) -> None:
    """Build the dataset, or finish one that was begun with the same configuration.

    Raises:
        DataError: a source that cannot be used, or not one row that could be kept.
        ConfigError: the output holds a dataset of another configuration.
        StorageError: the output cannot be written, or the disk is too small.
    """
    output = user_paths.usable_path(config.output, "output", folder=True).rstrip("/")
    config = config.model_copy(update={"output": output})
    check(config)
    _claim_output(config)
    layout = Layout(output)
    if storage.exists(storage.join(output, MANIFEST)):
        manifest = storage.read_json(storage.join(output, MANIFEST))
        delete_leftovers(output, manifest)  # a run may have ended between manifest and this
        send_rest(config.tracking, output, "FINISHED")
        print(f"data: finished before: {output}\n{summary(manifest['counts'])}", flush=True)
        return
    delete_temporaries(layout)
    try:
        _make(config, layout)
    except BaseException:  # Ctrl-C too: what is not whole goes, what is whole stays
        await_temporaries(layout)
        raise


def _make(config: DataConfig, layout: Layout) -> None:
    output = layout.output
    plan = make_plan(config, layout)
    rows = sum(chunk.rows or 0 for chunk in plan.chunks)
    if not storage.exists(layout.work):  # a run that goes on has used some of the space already
        user_paths.check_space(output, rows * BYTES_PER_ROW)
    log, earlier = EventLog(output, "data"), layout.tracked_run()
    inputs = [source.path for source in config.sources if detect_kind(source) == "dataset"]
    with Tracker.start(
        config.tracking, about(config), config, log, earlier=earlier, inputs=inputs
    ) as tracker:
        entries = build(config, layout, plan)
        manifest = make_manifest(config, plan.fingerprint, entries, 0, tracker.run_id)
        if manifest["counts"]["kept"] == 0:
            raise DataError(
                f"{output}: {summary(manifest['counts'])}; mend the cause, then delete the "
                "folder and run again"
            )
        finish(layout, manifest, entries.input_rows, tracker)


def about(config: DataConfig, again: str = "") -> About:
    """The run in words; `again` says what a retry tries again."""
    names = [source.name for source in config.sources]
    shown = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    return About(
        "data",
        f"{shown} retry" if again else shown,
        again or f"Builds a dataset of images and captions from {', '.join(names)}.",
        config.output,
        storage.join(config.output, PAGE),
    )


def finish(layout: Layout, manifest: dict[str, Any], input_rows: int, tracker: Tracker) -> None:
    """Write the manifest, which makes the dataset whole, then delete what only led to it.

    Raises:
        DataError: the files account for another number of rows than were read.
    """
    accounted = manifest["counts"]["input_rows"]
    if accounted != input_rows:
        raise DataError(
            f"{layout.output}: {input_rows:,} rows were read, its files account for {accounted:,};"
            f" two runs have written to it at once: end them, delete {layout.work}, run again"
        )
    names = [entry["name"] for entry in manifest["files"]]
    manifest["captions"] = count_captions(layout.output, names)
    publish(layout.output, manifest, tracker)
    storage.write_json(storage.join(layout.output, MANIFEST), manifest)
    delete_leftovers(layout.output, manifest)
    counts = manifest["counts"]
    tracker.log_metrics(
        {"input_rows": counts["input_rows"], "kept": counts["kept"]}
        | {f"rejected/{reason}": n for reason, n in counts["rejected"].items()}
    )
    tracker.log_datasets([*_sources(manifest), use_of(read_manifest(layout.output), "written")])
    print(f"data: finished: {layout.output}\n{summary(counts)}", flush=True)


def _sources(manifest: dict[str, Any]) -> list[DatasetUse]:
    """What the dataset was made of."""
    uses = []
    for source in manifest["config"]["sources"]:
        name = source["name"]
        digest = hashlib.sha256(f"{manifest['input_fingerprint']} {name}".encode()).hexdigest()
        profile = {"num_rows": manifest["sources"][name]["input_rows"]}
        uses.append(DatasetUse(name, digest, source["path"], profile, "source"))
    return uses


def make_manifest(
    config: DataConfig, fingerprint: str, entries: Entries, generation: int, run_id: str
) -> dict[str, Any]:
    """What a finished dataset says of itself; all counts are sums over its files' entries."""
    sources = {}
    for source in config.sources:
        kept = sum(entry["rows"] for entry in entries.files if entry["source"] == source.name)
        rejected = _reasons(entry for entry in entries.rejects if entry["source"] == source.name)
        sources[source.name] = {
            "licence": source.licence,
            "weight": source.weight,
            "texts": entries.texts.get(source.name, {}),
            "work": entries.work.get(source.name, {}),
            **_counts(kept, rejected),
        }
    kept = sum(entry["rows"] for entry in entries.files)
    return {
        "schema_version": SCHEMA_VERSION,
        "created_by": f"caft {__version__}",
        "generation": generation,
        "config": config.model_dump(mode="json"),
        "config_sha256": _digest(config),
        "behaviours": numbers(BEHAVIOURS),
        "input_fingerprint": fingerprint,
        "sources": sources,
        "files": list(entries.files),
        "rejects": list(entries.rejects),
        "counts": _counts(kept, _reasons(entries.rejects)),
        "mlflow_run_id": run_id,
    }


def summary(counts: dict[str, Any]) -> str:
    """`input 100 = kept 97 + rejected 3 (http_4xx 2, timeout 1)`."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["rejected"].items())
    rejected = sum(counts["rejected"].values())
    shown = f" ({reasons})" if reasons else ""
    return (
        f"input {counts['input_rows']:,} = kept {counts['kept']:,} + rejected {rejected:,}{shown}"
    )


def _counts(kept: int, rejected: dict[str, int]) -> dict[str, Any]:
    return {"input_rows": kept + sum(rejected.values()), "kept": kept, "rejected": rejected}


def _reasons(entries: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for entry in entries:
        total.update(entry["reasons"])
    return dict(sorted(total.items()))


def _claim_output(config: DataConfig) -> None:
    """Store what is asked for with the output, or refuse an output of something else."""
    output = config.output
    copy, path = storage.join(output, CONFIG_COPY), storage.join(output, IDENTITY)
    sources = {source.name: source_identity(source) for source in config.sources}
    finished = storage.exists(storage.join(output, MANIFEST))
    if storage.exists(copy):
        holds = "a dataset" if finished else "an unfinished dataset"
        known = storage.read_json(path) if storage.exists(path) else {}
        if not finished:  # a finished one is read as what it was
            require_same_behaviour(output, holds, known.get("behaviours", {}), BEHAVIOURS)
        require_same_config(output, holds, copy, config, FREE_FIELDS)
        then = known.get("sources", sources)
        require_same(output, holds, first_difference(then, sources, "sources"))
    if not finished:
        # The copy last: it says that the output was begun.
        storage.write_json(path, {"sources": sources, "behaviours": numbers(BEHAVIOURS)})
        storage.write_bytes(copy, to_yaml(config).encode())


def _digest(config: DataConfig) -> str:
    """Of everything in the configuration that decides the rows."""
    return hashlib.sha256(config.model_dump_json(exclude=FREE_FIELDS).encode()).hexdigest()


@dataclass(frozen=True)
class Entries:
    """What a generation adds to the manifest."""

    files: list[dict[str, Any]]
    rejects: list[dict[str, Any]]
    input_rows: int
    texts: dict[str, dict[str, Any]]  # of each source, what `texts_of` says
    work: dict[str, dict[str, Any]]  # and what `work_of` says


def check(config: DataConfig) -> None:
    """Look at everything that a run will read, so that a wrong path fails at once.

    Raises:
        ConfigError, DataError, CheckpointError: what is wrong, and how to fix it.
    """
    check_filters(config.filters)
    if config.superpixels is not None and config.superpixels.segmenter.method == "sfcn":
        from caft.superpixels.network import open_sfcn  # loads PyTorch

        open_sfcn(config.superpixels.segmenter)
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
    names = [source.name for source in config.sources]
    return Entries(
        files=[entries["part"] for entries in written if entries["part"]],
        rejects=[entry for entries in written for entry in entries["rejects"]],
        input_rows=sum(receipt["input_rows"] for receipt in receipts.values()),
        texts={name: texts_of(number, plan, receipts) for number, name in enumerate(names)},
        work={name: work_of(number, plan, receipts) for number, name in enumerate(names)},
    )


def _process_chunks(
    config: DataConfig, layout: Layout, plan: Plan, concurrency: int
) -> dict[int, dict[str, Any]]:
    """Every chunk's receipt, in order, with the missing ones made."""
    receipts = _receipts(layout, "chunk")
    todo = [chunk for chunk in plan.chunks if chunk.number not in receipts]
    if todo:
        equal = equal_urls(plan.chunks, config, layout, concurrency)
        evaluation = all_evaluation_hashes(config.decontamination, layout, concurrency)
        nothing = EqualUrls([], [], None)
        items = [[asdict(chunk), asdict(equal.get(chunk.number, nothing))] for chunk in todo]

        def work(item: list[Any]) -> dict[str, Any]:
            chunk, same = item
            return process_chunk(Chunk(**chunk), EqualUrls(**same), config, layout, evaluation)

        reported = _Reported(plan, config)
        for receipt in receipts.values():
            reported.add(receipt)

        def name(item: list[Any]) -> str:
            chunk = Chunk(**item[0])
            return f"{chunk.number} of source '{config.sources[chunk.source].name}' ({chunk.path})"

        for _, receipt in run_tasks("chunk", work, items, concurrency, CHUNK_CPUS, name):
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
    """Receipts that are there, by number. One that is cut or of another shape is none: its piece is
    made again."""
    names = [name for name in storage.list_files(layout.work, ".json") if name.startswith(step)]
    paths = [storage.join(layout.work, name) for name in names]
    with ThreadPoolExecutor(RECEIPT_READERS) as readers:
        receipts = list(readers.map(read_receipt, paths))
    return {
        int(name.removesuffix(".json").rsplit("-", 1)[-1]): receipt
        for name, receipt in zip(names, receipts, strict=True)
        if receipt is not None
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
