"""Fetches the images of rows, many at a time, in a thread beside the one that uses them.
Rows in, the same rows with bytes or with the reason why there are none, in order of completion."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any

from pipelines.data.config import DownloadConfig
from pipelines.data.fetch.fetcher import Fetcher
from pipelines.failures import located

Row = dict[str, Any]

MOST_READ_AHEAD = 32  # with rows that wait for the address of a name, and need no connection yet
READ_AHEAD = 4  # rows in work per connection: so many of a slow host do not hold up the others
WAITING_BYTES = 2**28  # of fetched rows that nobody took yet; no request starts above it


def download(rows: Iterable[Row], config: DownloadConfig) -> Iterator[Row]:
    """Fetch the `url` of every row that has no `reason` and no `data` yet.

    Reads `rows` only as far ahead as it needs to, in the caller's thread. Transfers go on
    between two rows taken; they stop when the generator is closed.

    Yields:
        each row once, with `data` (bytes), or with `reason` and `detail`; rows that have either
        already come back as they are.
    """
    in_work = 0
    with _Thread(config) as thread:
        for row in rows:
            if row.get("reason") is not None or row.get("data") is not None:
                yield row
                continue
            thread.put(row)
            in_work += 1
            idle = min(thread.rows_without_address, MOST_READ_AHEAD * config.connections - in_work)
            if in_work - idle >= READ_AHEAD * config.connections:
                yield thread.take()
                in_work -= 1
        for _ in range(in_work):
            yield thread.take()


class _Thread:
    """An event loop in a thread that fetches what is put, and holds back when little is taken."""

    def __init__(self, config: DownloadConfig) -> None:
        self._config = config
        self._stop = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self._fetcher = Fetcher(config, self._gate)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: SimpleQueue[Row | BaseException] = SimpleQueue()
        self._waiting_rows = self._waiting_bytes = 0  # both of the loop's thread alone
        self._thread = threading.Thread(target=self._run, name="download", daemon=True)

    def __enter__(self) -> _Thread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    @property
    def rows_without_address(self) -> int:
        return self._fetcher.rows_without_address

    def put(self, row: Row) -> None:
        self._loop.call_soon_threadsafe(self._begin, row)

    def take(self) -> Row:
        """The next finished row, once there is one. Raises what ended the thread."""
        row = self._done.get()
        if isinstance(row, BaseException):
            raise row
        self._loop.call_soon_threadsafe(self._count, -1, -len(row.get("data") or b""))
        return row

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:
            self._done.put(error)

    async def _main(self) -> None:
        try:
            await self._stop.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._fetcher.close()

    def _begin(self, row: Row) -> None:
        task = self._loop.create_task(self._fetch(row))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, row: Row) -> None:
        try:
            with located(f"row {row['url']}"):
                row = await self._fetcher.fetch(row)
        except Exception as error:
            self._done.put(error)
            return
        self._count(1, len(row.get("data") or b""))
        self._done.put(row)

    def _count(self, rows: int, size: int) -> None:
        self._waiting_rows += rows
        self._waiting_bytes += size
        if self._waiting_rows < self._config.connections and self._waiting_bytes < WAITING_BYTES:
            self._gate.set()
        else:
            self._gate.clear()
