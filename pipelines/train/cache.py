"""Row groups of a dataset on a node's own disk, so that later epochs ask the storage for nothing.
Between the loader and Parquet; the processes of a node share a folder, whichever run they serve."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from pipelines.train.config import CacheConfig

VERSION = 1  # of what a file holds: sha256 of the rest, and an Arrow stream
DIGEST_BYTES = hashlib.sha256().digest_size
GB = 10**9
SHARDS = 256
ABANDONED_S = 3600.0  # a file that is still being written after so long belongs to a dead process
TEMPORARY = ".tmp"


class RowGroupCache:
    """Tables by name, of one dataset.

    What has been added stays: row groups come back once an epoch, each as likely as another, so
    that replacing one by another gains nothing. Once `max_gb` are full, what is of other datasets
    goes, and then nothing is added any more. A disk that cannot be written to is as a full one.

    Args:
        dataset: what its files are identified by; another one shares nothing.
    """

    def __init__(self, config: CacheConfig, dataset: str) -> None:
        self._root = Path(config.folder)
        self._most = int(config.max_gb * GB)
        name = hashlib.sha256(f"{VERSION}/{dataset}".encode()).hexdigest()[:16]
        self._folder = self._root / name
        self._full = False

    def table(self, name: str, read: Callable[[], pa.Table]) -> pa.Table:
        """The table of that name, or what `read` gives, which is then kept. A file that is damaged
        counts as missing."""
        digest = hashlib.sha256(name.encode()).hexdigest()
        path = self._folder / f"{int(digest[:8], 16) % SHARDS:02x}" / digest[:32]
        found = self._found(path)
        if found is None:
            found = read()
            if not self._full:
                self._add(path, found)
        return found

    def _found(self, path: Path) -> pa.Table | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, content = data[:DIGEST_BYTES], memoryview(data)[DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            with suppress(OSError):
                path.unlink()
                self._reserve(-len(data))
            return None
        return pa.ipc.open_stream(content).read_all()

    def _add(self, path: Path, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        size = DIGEST_BYTES + content.size
        staged = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._reserve(size):
                self._full = True
                return
            with staged.open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
            os.replace(staged, path)
        except OSError:
            self._full = True
            with suppress(OSError):
                staged.unlink(missing_ok=True)
                self._reserve(-size)

    def _reserve(self, size: int) -> bool:
        """Whether `size` more bytes fit; they then count."""
        with self._used() as used:
            if used.bytes + size > self._most:
                used.bytes = self._counted()
            if used.bytes + size > self._most:
                self._drop_other_datasets()
                used.bytes = self._counted()
            fits = used.bytes + size <= self._most
            used.bytes += size if fits else 0
            return fits

    @contextmanager
    def _used(self) -> Iterator[_Used]:
        """What the folder holds, as its processes keep count of it, one of them at a time."""
        with (self._root / "bytes").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            used = _Used(int(text) if text.isdecimal() else self._counted())
            yield used
            file.truncate(0)
            file.write(str(max(0, used.bytes)))

    def _counted(self) -> int:
        """Bytes of all files; those that a dead process began are removed."""
        total = 0
        for file in self._root.glob("*/*/*"):
            with suppress(OSError):
                about = file.stat()
                if file.suffix == TEMPORARY and time.time() - about.st_mtime > ABANDONED_S:
                    file.unlink()
                else:
                    total += about.st_size
        return total

    def _drop_other_datasets(self) -> None:
        for folder in self._root.iterdir():
            if folder.is_dir() and folder != self._folder:
                shutil.rmtree(folder, ignore_errors=True)


class _Used:
    def __init__(self, size: int) -> None:
        self.bytes = size
