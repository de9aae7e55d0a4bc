"""The dataset on disk: schemas, entries of the manifest, and its reader.
The data stage writes it; train and evaluate open it here and nowhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from caft.captions import Rule
from caft.errors import DataError, StorageError
from pipelines import storage
from pipelines.data.write import count_rows, count_values
from pipelines.tracking import DatasetUse

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
FOOTER_READERS = 16
CAPTION_KIND = "captions.list.element.kind"  # of each caption, as Parquet names it

CAPTIONS = pa.list_(
    pa.struct(
        [("source", pa.string()), ("kind", pa.string()), ("sentences", pa.list_(pa.string()))]
    )
)
DATASET_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("image", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("look", pa.binary()),
        ("captions", CAPTIONS),
        ("superpixels", pa.binary()),
        ("split", pa.string()),
    ]
)
REJECT_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "url", "stage", "reason", "detail")]
)


def without_look(schema: pa.Schema) -> pa.Schema:
    """The schema of parts that were written before rows had a look."""
    return pa.schema([field for field in schema if field.name != "look"])


@dataclass(frozen=True)
class FileEntry:
    """One Parquet part as the manifest lists it."""

    name: str
    rows: int
    bytes: int
    sha256: str
    source: str = ""


@dataclass(frozen=True)
class RejectsEntry(FileEntry):
    """One file of rejected rows; `plan` names the file that holds their captions, for a retry."""

    plan: str | None = None
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A finished dataset folder."""

    path: str
    manifest: dict[str, Any]
    files: tuple[FileEntry, ...]
    rejects: tuple[RejectsEntry, ...]

    @property
    def rows(self) -> int:
        return sum(entry.rows for entry in self.files)

    @property
    def split_mode(self) -> Rule:
        """The rule of `split_sentences` that its captions were split by."""
        captions = self.manifest.get("config", {}).get("captions", {})
        return "reference" if captions.get("split_mode") == "reference" else "default"

    @property
    def fingerprint(self) -> str:
        """Digest of every part's checksum: equal for equal rows in equal files."""
        return hashlib.sha256("".join(entry.sha256 for entry in self.files).encode()).hexdigest()


def use_of(dataset: Dataset, context: str) -> DatasetUse:
    """The dataset as the run that reads or writes it shows it."""
    profile = {"num_rows": dataset.rows, "images": dataset.rows}
    if "captions" in dataset.manifest:
        profile["captions"] = dataset.manifest["captions"]
    name = dataset.path.rstrip("/").rsplit("/", 1)[-1]
    return DatasetUse(name, dataset.fingerprint, dataset.path, profile, context)


def count_captions(path: str, names: Sequence[str]) -> int:
    """Captions in some parts of a dataset: each row has at least one, so that the values of a
    caption's field are as many, as the ends of the files say.

    Raises:
        StorageError: one is missing or damaged.
    """
    with ThreadPoolExecutor(FOOTER_READERS) as readers:
        parts = (storage.join(path, name) for name in names)
        return sum(readers.map(lambda part: count_values(part, CAPTION_KIND), parts))


def open_dataset(path: str) -> Dataset:
    """Open a finished dataset, after checking that every part is there and is whole Parquet.

    Raises:
        DataError: no manifest, a missing part, a size that differs, or corrupt Parquet.
    """
    dataset = read_manifest(path)
    for entry in dataset.files:
        _check_part(storage.join(path, entry.name), entry)
    return dataset


def read_manifest(path: str) -> Dataset:
    """A finished dataset as its manifest says it is, its files not looked at.

    Raises:
        DataError: no manifest, or a damaged one.
    """
    if not storage.exists(storage.join(path, MANIFEST)):
        raise DataError(
            f"{path}: no {MANIFEST}, so the data stage has not finished it; "
            "run python -m pipelines.data with the same configuration again"
        )
    try:
        manifest = storage.read_json(storage.join(path, MANIFEST))
        files = tuple(FileEntry(**entry) for entry in manifest["files"])
        rejects = tuple(RejectsEntry(**entry) for entry in manifest.get("rejects", []))
    except (StorageError, KeyError, TypeError) as error:
        raise DataError(
            f"{storage.join(path, MANIFEST)}: not a dataset manifest: {error}"
        ) from None
    return Dataset(path, manifest, files, rejects)


def _check_part(path: str, entry: FileEntry) -> None:
    size = storage.size_bytes(path)
    if size is None:
        raise DataError(f"{path}: missing, but {MANIFEST} lists it; run the data stage again")
    try:
        rows = count_rows(path)
    except StorageError as error:
        raise DataError(
            f"{path}: corrupt Parquet ({error}); delete it and run the data stage again"
        ) from None
    if size != entry.bytes or rows != entry.rows:
        raise DataError(
            f"{path}: {rows} rows in {size} bytes, {MANIFEST} says {entry.rows} in "
            f"{entry.bytes}; delete it and run the data stage again"
        )
