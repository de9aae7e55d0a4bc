"""The data stage's flow: plan, then every chunk through the same named steps, then the manifest.
A chunk's files are written whole and its receipt last, so any crash costs at most open chunks."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from caft import __version__
from caft.captions import split_sentences
from caft.config import to_yaml
from caft.errors import ConfigError, DataError
from pipelines import storage
from pipelines.data.config import CaptionConfig, DataConfig
from pipelines.data.dataset import DATASET_SCHEMA, MANIFEST, REJECT_SCHEMA, SCHEMA_VERSION
from pipelines.data.download import download
from pipelines.data.images import prepare_images
from pipelines.data.sources import check_source, plan_chunks, read_chunk
from pipelines.progress import Progress
from pipelines.tracking import Tracker

CONFIG_COPY, RECEIPTS, REJECTS = "data.yaml", "receipts", "rejects"
# What may differ when a run is taken up again: it changes the speed, not the rows.
FREE_FIELDS = {"tracking", "progress_every_s", "concurrency", "output"}
# Rough need of disk, to refuse work that cannot fit before it starts.
BYTES_PER_ROW = 20_000


def run(config: DataConfig) -> None:
    """Build the dataset, or finish one that was begun with the same configuration.

    Raises:
        DataError: a source that cannot be used, or not one row that could be kept.
        ConfigError: the output holds a dataset of another configuration.
        StorageError: the output cannot be written, or the disk is too small.
    """
    storage.require_absolute(config.output, "output")
    for source in config.sources:
        check_source(source)
    _claim_output(config)
    if storage.exists(storage.join(config.output, MANIFEST)):
        manifest = storage.read_json(storage.join(config.output, MANIFEST))
        print(f"data: finished before: {config.output}\n{summary(manifest['counts'])}", flush=True)
        return
    plan = plan_chunks(config)
    storage.check_space(config.output, plan["rows"] * BYTES_PER_ROW)
    name = config.output.rstrip("/").rsplit("/", 1)[-1]
    with Tracker.start(config.tracking, "data", name, config) as tracker:
        receipts = _process_chunks(config, plan)
        manifest = build_manifest(config, plan, receipts, tracker.run_id)
        if manifest["counts"]["kept"] == 0:
            raise DataError(
                f"{config.output}: {summary(manifest['counts'])}; mend the cause, then delete the "
                "folder and run again"
            )
        storage.write_json(storage.join(config.output, MANIFEST), manifest)
        counts = manifest["counts"]
        tracker.log_metrics(
            {"input_rows": counts["input_rows"], "kept": counts["kept"]}
            | {f"rejected/{reason}": n for reason, n in counts["rejected"].items()}
        )
        print(f"data: finished: {config.output}\n{summary(counts)}", flush=True)


def process_chunk(row: dict[str, Any], config: DataConfig) -> dict[str, Any]:
    """Take one chunk from plan rows to its two Parquet files; returns its receipt."""
    index = row["chunk"]
    rows = read_chunk(config.output, index)
    rows = download(rows, config.download)
    rows = prepare_images(rows, config.image)
    rows = split_captions(rows, config.captions)
    kept = [row for row in rows if row["reason"] is None]
    rejected = [row for row in rows if row["reason"] is not None]
    name = f"part-{index:05d}.parquet"
    receipt: dict[str, Any] = {"chunk": index, "input_rows": len(rows), "rejected": {}}
    for row in rejected:
        receipt["rejected"][row["reason"]] = receipt["rejected"].get(row["reason"], 0) + 1
    receipt["rejects"] = _write_part(
        config, f"{REJECTS}/{name}", [_reject(row) for row in rejected], REJECT_SCHEMA
    )
    receipt["part"] = _write_part(config, name, [_kept(row) for row in kept], DATASET_SCHEMA)
    storage.write_json(_receipt_path(config, index), receipt)
    return receipt


def split_captions(rows: list[dict[str, Any]], config: CaptionConfig) -> list[dict[str, Any]]:
    """Replace raw texts by sentence lists; a row without a sentence gets its reason."""
    split = []
    for row in rows:
        captions = []
        for entry in row["texts"]:
            sentences = [
                sentence
                for text in entry["texts"]
                for sentence in split_sentences(text, config.split_mode, config.min_chars)
            ]
            if sentences:
                captions.append(
                    {"source": entry["source"], "kind": entry["kind"], "sentences": sentences}
                )
        row = row | {"captions": captions}
        if row["reason"] is None and not captions:
            row |= {"reason": "no_caption", "detail": "no sentence is long enough"}
        split.append(row)
    return split


def build_manifest(
    config: DataConfig, plan: dict[str, Any], receipts: list[dict[str, Any]], run_id: str
) -> dict[str, Any]:
    """The manifest of a finished dataset, from the receipts of all chunks.

    Raises:
        AssertionError: rows were lost or doubled, which would be a defect of this stage.
    """
    rejected: dict[str, int] = {}
    for receipt in receipts:
        for reason, count in receipt["rejected"].items():
            rejected[reason] = rejected.get(reason, 0) + count
    kept = sum(receipt["part"]["rows"] for receipt in receipts if receipt["part"])
    assert plan["rows"] == kept + sum(rejected.values()), "input rows != kept + rejected"
    return {
        "schema_version": SCHEMA_VERSION,
        "created_by": f"caft {__version__}",
        "config": config.model_dump(mode="json"),
        "config_sha256": _identity(config),
        "input_fingerprint": plan["input_fingerprint"],
        "sources": plan["sources"],
        "files": [receipt["part"] for receipt in receipts if receipt["part"]],
        "rejects": [receipt["rejects"] for receipt in receipts if receipt["rejects"]],
        "counts": {
            "input_rows": plan["rows"],
            "kept": kept,
            "rejected": dict(sorted(rejected.items())),
        },
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


def _process_chunks(config: DataConfig, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Run every chunk without a receipt through Ray Data; all receipts, in chunk order."""
    receipts: dict[int, dict[str, Any]] = {}
    for index in range(plan["chunks"]):
        path = _receipt_path(config, index)
        if storage.exists(path):
            receipts[index] = storage.read_json(path)
    todo = [{"chunk": index} for index in range(plan["chunks"]) if index not in receipts]
    progress = Progress("data", plan["rows"], "rows", config.progress_every_s)
    rejected: dict[str, int] = {}
    for receipt in receipts.values():
        _count(progress, receipt, rejected)
    if todo:
        ray.data.DataContext.get_current().enable_progress_bars = False
        results = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
            lambda row: {"receipt": process_chunk(row, config)},
            compute=ray.data.TaskPoolStrategy(size=config.concurrency),
        )
        for row in results.iter_rows():
            chunk = row["receipt"]["chunk"]
            receipts[chunk] = storage.read_json(_receipt_path(config, chunk))
            _count(progress, receipts[chunk], rejected)
    return [receipts[index] for index in sorted(receipts)]


def _count(progress: Progress, receipt: dict[str, Any], rejected: dict[str, int]) -> None:
    for reason, count in receipt["rejected"].items():
        rejected[reason] = rejected.get(reason, 0) + count
    progress.update(receipt["input_rows"], **rejected)


def _claim_output(config: DataConfig) -> None:
    """Store the configuration with the output, or refuse an output of another one."""
    path = storage.join(config.output, "config.sha256")
    identity = _identity(config)
    if storage.exists(path) and storage.read_bytes(path).decode() != identity:
        raise ConfigError(
            f"output: {config.output} was begun with another configuration or source list "
            f"(see {CONFIG_COPY} there); choose another output"
        )
    storage.write_bytes(storage.join(config.output, CONFIG_COPY), to_yaml(config).encode())
    storage.write_bytes(path, identity.encode())


def _identity(config: DataConfig) -> str:
    """Digest of everything that decides the rows, the sources' sizes included."""
    sizes = []
    for source in config.sources:
        fs, path = storage.filesystem(source.path)
        sizes.append(fs.get_file_info(path).size)
    text = f"{config.model_dump_json(exclude=FREE_FIELDS)}\n{sizes}"
    return hashlib.sha256(text.encode()).hexdigest()


def _write_part(
    config: DataConfig, name: str, rows: list[dict[str, Any]], schema: pa.Schema
) -> dict[str, Any] | None:
    """Write one Parquet file; its manifest entry, or None where there is no row for it."""
    if not rows:
        return None
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist(rows, schema),
        sink,
        compression="zstd",
        row_group_size=config.row_group_rows,
    )
    data = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(config.output, name), data)
    digest = hashlib.sha256(data).hexdigest()
    return {"name": name, "rows": len(rows), "bytes": len(data), "sha256": digest}


def _receipt_path(config: DataConfig, index: int) -> str:
    return storage.join(config.output, RECEIPTS, f"chunk-{index:05d}.json")


def _key(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    stored = {name: row.get(name) for name in DATASET_SCHEMA.names}
    return stored | {"key": _key(row["url"])}


def _reject(row: dict[str, Any]) -> dict[str, Any]:
    stage = {"duplicate_url": "plan", "no_caption": "captions", "bad_url": "plan"}
    shown = {name: row.get(name) for name in REJECT_SCHEMA.names}
    by_reason = stage.get(row["reason"])
    if by_reason is None:
        by_reason = "image" if row["reason"] in IMAGE_REASONS else "download"
    return shown | {"key": _key(row["url"]), "stage": by_reason}


IMAGE_REASONS = {"not_an_image", "truncated_image", "decompression_bomb", "too_small"}
