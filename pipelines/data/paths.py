"""Where a dataset keeps its files while it is made, and the units of work it is made in.
Shared by plan, chunks, duplicates and writing, so that a run taken up again finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from caft.documents import parse_json
from caft.errors import DataError
from pipelines import storage

CONFIG_COPY, IDENTITY, RUN = "data.yaml", "identity.json", "run.json"


@dataclass(frozen=True)
class Layout:
    """Paths of one generation: the first makes a dataset, each retry adds to it.

    `plan` stays, because a retry reads the captions of rejected rows from it; `work` is deleted
    once the manifest is written.
    """

    output: str
    generation: int = 0

    @property
    def plan(self) -> str:
        return storage.join(self.output, f"plan{self._suffix}")

    @property
    def work(self) -> str:
        return storage.join(self.output, f"work{self._suffix}")

    def part(self, number: int) -> str:
        return f"part{self._suffix}-{number:05d}.parquet"

    def rejects(self, number: int) -> str:
        return f"rejects/part{self._suffix}-{number:05d}.parquet"

    def candidate(self, chunk: int) -> str:
        return storage.join(self.work, f"candidate-{chunk:05d}.parquet")

    def candidate_rejects(self, chunk: int) -> str:
        return storage.join(self.work, f"rejects-{chunk:05d}.parquet")

    def index(self, chunk: int) -> str:
        return storage.join(self.work, f"index-{chunk:05d}.parquet")

    def receipt(self, step: str, number: int) -> str:
        return storage.join(self.work, f"{step}-{number:05d}.json")

    def tracked_run(self) -> str | None:
        """The MLflow run of an attempt by an earlier version that did not finish."""
        path = storage.join(self.work, RUN)
        return str(storage.read_json(path)["run_id"]) if storage.exists(path) else None

    def relative(self, path: str) -> str:
        """A path below the output, without it: what a manifest holds, so that a set can move."""
        return path.removeprefix(f"{self.output}/")

    @property
    def _suffix(self) -> str:
        return f"-r{self.generation}" if self.generation else ""


@dataclass(frozen=True)
class Chunk:
    """A run of rows of one source that is fetched, checked and committed together.

    Attributes:
        source: number of the source in the configuration.
        path: the plan file with its rows, relative to the output; or a tar or dataset part.
        rows: None until a container has been read.
        captions: the file with the captions that are joined to a container's rows, relative to
            the output.
        span: first byte and end of the part of a tar that is the chunk's; None: all of it.
    """

    number: int
    source: int
    path: str
    rows: int | None
    container: bool = False
    captions: str | None = None
    span: tuple[int, int] | None = None


# A row's number in the whole set: its chunk's number times this, plus its place in the chunk.
ROWS_PER_CHUNK = 2**32


RECEIPT_KEYS = {"chunk": ("input_rows", "kept", "reasons"), "files": ("part", "rejects")}


def read_receipt(path: str) -> dict[str, Any] | None:
    """A receipt of a step; None where there is none, or one that is cut or of another shape: what
    it stood for is made again."""
    if not storage.exists(path):
        return None
    keys = RECEIPT_KEYS[path.rpartition("/")[2].partition("-")[0]]
    try:
        receipt = parse_json(storage.read_bytes(path), path, DataError)
    except DataError:
        return None
    return receipt if isinstance(receipt, dict) and set(keys) <= set(receipt) else None
