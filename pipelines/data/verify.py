"""Checks a finished dataset again: files, checksums, rows, keys and images against its manifest.
Run as `python -m pipelines.data verify PATH`; exits with 1 and names what is wrong."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from caft.errors import CAFTError
from pipelines import storage, user_paths
from pipelines.data.dataset import (
    DATASET_SCHEMA,
    MANIFEST,
    REJECT_SCHEMA,
    Dataset,
    FileEntry,
    RejectsEntry,
    read_manifest,
    without_look,
)
from pipelines.data.dedup.pairs import exact_duplicates
from pipelines.data.files import unlisted_parts
from pipelines.data.reasons import REASONS
from pipelines.data.write import read_table
from pipelines.workers import cluster_cpus, run_tasks

SHOWN = 20


def verify(path: str) -> list[str]:
    """What is wrong with a dataset, as lines; none if nothing is.

    Raises:
        DataError: there is no finished dataset.
    """
    path = user_paths.usable_path(path, "dataset").rstrip("/")
    dataset = read_manifest(path)
    entries = [*dataset.files, *dataset.rejects]
    items = list(range(len(entries)))
    problems = [
        f"{path}/{name}: not in {MANIFEST}" for name in unlisted_parts(path, dataset.manifest)
    ]
    keys = [np.empty(0, "V16")]
    kept: Counter[str] = Counter()  # rows by source
    rejected: defaultdict[str, Counter[str]] = defaultdict(Counter)  # and by reason
    for n, found in run_tasks(
        "verify", lambda n: check_file(path, entries[n]), items, cluster_cpus()
    ):
        problems += found["problems"]
        keys.append(np.frombuffer(bytes.fromhex(found["keys"]), "V16"))
        kept[entries[n].source] += len(keys[-1])
        rejected[entries[n].source].update(found["reasons"])
    every = np.concatenate(keys)
    rows = np.arange(len(every))
    doubled, _ = exact_duplicates(every, np.zeros_like(rows), rows)
    problems += [f"key {every[n].tobytes().hex()}: in two rows" for n in doubled[:SHOWN]]
    return problems + _count_problems(dataset, kept, rejected)


def check_file(path: str, entry: FileEntry) -> dict[str, Any]:
    """Read one file of a dataset whole; its problems, keys of kept rows and reject reasons."""
    result: dict[str, Any] = {"problems": [], "keys": "", "reasons": {}}
    problems = result["problems"]
    file = storage.join(path, entry.name)
    try:
        if storage.sha256(file) != entry.sha256:
            problems.append(f"{file}: its checksum is not the manifest's")
        table = read_table(file)
    except CAFTError as error:
        problems.append(str(error))
        return result
    if len(table) != entry.rows:
        problems.append(f"{file}: {len(table)} rows, the manifest says {entry.rows}")
    schema = REJECT_SCHEMA if isinstance(entry, RejectsEntry) else DATASET_SCHEMA
    if not table.schema.equals(schema) and not table.schema.equals(without_look(schema)):
        problems.append(f"{file}: its columns are not those of this version's schema")
        return result
    if isinstance(entry, RejectsEntry):
        result["reasons"] = Counter(table["reason"].to_pylist())
        if result["reasons"] != entry.reasons:
            problems.append(f"{file}: its reasons are not the manifest's")
        unknown = sorted(set(result["reasons"]) - set(REASONS))
        problems += [f"{file}: unknown reason '{reason}'" for reason in unknown]
        return result
    result["keys"] = "".join(table["key"].to_pylist())
    for batch in table.to_batches(max_chunksize=256):
        problems += [f"{file}: {problem}" for problem in _row_problems(batch)]
    del problems[SHOWN:]
    return result


def _count_problems(
    dataset: Dataset, kept: Mapping[str, int], rejected: Mapping[str, Counter[str]]
) -> list[str]:
    """Counts of the manifest that its files do not hold, of the whole and of each source."""
    manifest = dataset.manifest
    groups = [("counts", manifest["counts"], list(manifest["sources"]))]
    groups += [(f"sources.{name}", said, [name]) for name, said in manifest["sources"].items()]
    problems = []
    for group, said, names in groups:
        rows = sum(kept[name] for name in names)
        reasons: Counter[str] = sum((rejected[name] for name in names), Counter())
        for field, counted in (
            ("kept", rows),
            ("rejected", dict(sorted(reasons.items()))),
            ("input_rows", rows + reasons.total()),
        ):
            if said[field] != counted:
                problems.append(
                    f"{MANIFEST}: {group}.{field} is {said[field]}, the files hold {counted}"
                )
    for name, said in manifest["sources"].items():
        joined = said.get("texts", {}).get("captions_from")
        if joined is not None:
            found = joined["joined"] + joined["without_image"] + sum(joined["rejected"].values())
            if found != joined["rows"]:
                problems.append(
                    f"{MANIFEST}: sources.{name}.texts.captions_from.rows is {joined['rows']}, "
                    f"its parts are {found}"
                )
    return problems


def _row_problems(batch: pa.RecordBatch) -> list[str]:
    problems = []
    for row in batch.to_pylist():
        if row["key"] != hashlib.sha256(row["url"].encode()).hexdigest()[:32]:
            problems.append(f"key {row['key']}: is not that of its URL")
        if _size(row["image"]) != (row["width"], row["height"]):
            problems.append(f"key {row['key']}: its image is not {row['width']}x{row['height']}")
        if not any(entry["sentences"] for entry in row["captions"]):
            problems.append(f"key {row['key']}: no sentence")
    return problems


def _size(image: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(image)) as picture:
            return picture.size
    except (OSError, ValueError):
        return None
