"""How politely one host is asked: so many requests at a time, none while it asks for a pause.
Every request of the downloader waits here for its place."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from pipelines.data.reasons import REASONS

CACHE_S = 600.0
LASTING_ERRORS = (socket.EAI_NONAME, socket.EAI_NODATA)  # kept like answers
# A name whose servers do not answer is not asked for again that long. Errors that come at once,
# as of a busy resolver, are.
SILENT_S, QUICK_S = 120.0, 1.0


class Failure(Exception):
    """Why a request or a row has no image: a reason of `REASONS` and what happened."""

    def __init__(self, reason: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.retry_after_s = reason, detail, retry_after_s

    @property
    def transient(self) -> bool:
        return REASONS[self.reason].transient


class Host:
    """The requests to one host. Times are of the running event loop's clock."""

    def __init__(self, connections: int, patience_s: float) -> None:
        self._places = asyncio.Semaphore(connections)
        self._patience_s = patience_s
        self._paused_until = 0.0
        self._refusing_since: float | None = None
        self._refusal = Failure("http_429", "")

    @asynccontextmanager
    async def place(self, deadline: float | None) -> AsyncIterator[None]:
        """Hold one of the host's places, once it is free and no pause holds.

        Raises:
            Failure: the host asked for a pause that ends after `deadline`; or, without one, it
                has refused all requests for longer than a row may take.
        """
        while True:
            async with self._places:
                pause_s = self._pause(deadline)
                if pause_s <= 0:
                    yield
                    return
            await asyncio.sleep(pause_s)

    def _pause(self, deadline: float | None) -> float:
        now = asyncio.get_running_loop().time()
        if now >= self._paused_until:
            return 0.0
        if deadline is None:
            since = now if self._refusing_since is None else self._refusing_since
            deadline = since + self._patience_s
        pause_s = self._paused_until - now
        if self._paused_until > deadline:
            reason, detail = self._refusal.reason, self._refusal.detail
            raise Failure(reason, f"{detail}; the host asked to wait {pause_s:.0f} s", pause_s)
        return pause_s

    def refused(self, refusal: Failure) -> None:
        """The host answered that it wants no requests for `refusal.retry_after_s`. It gets
        none for as long as a row may take at most: more may be meant for one URL alone."""
        assert refusal.retry_after_s is not None
        now = asyncio.get_running_loop().time()
        pause_s = min(refusal.retry_after_s, self._patience_s)
        self._paused_until = max(self._paused_until, now + pause_s)
        self._refusal = refusal
        if self._refusing_since is None:
            self._refusing_since = now

    def answered(self) -> None:
        """The host answered a request otherwise."""
        self._refusing_since = None


class Names:
    """Looks names up, each once; of one event loop."""

    def __init__(self, threads: int, timeout_s: float) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="names")
        self._free = asyncio.Semaphore(threads)
        self._timeout_s = timeout_s
        self._lookups: dict[str, asyncio.Task[list[str]]] = {}
        self._expires: dict[str, float] = {}
        self.waiting = 0  # rows that wait for an answer

    def close(self) -> None:
        """Give up what is being looked up."""
        for lookup in self._lookups.values():
            lookup.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def addresses(self, name: str) -> list[str]:
        """The addresses of a host name; what one look-up gave answers all that ask for a while.

        Raises:
            Failure: it has none, or there is no answer in time.
        """
        now = asyncio.get_running_loop().time()
        lookup = self._lookups.get(name)
        if lookup is None or now >= self._expires.get(name, math.inf):
            self._expires.pop(name, None)
            lookup = self._lookups[name] = asyncio.create_task(self._look_up(name))
            lookup.add_done_callback(_ignore)
        self.waiting += 1
        try:
            return await asyncio.shield(lookup)  # others wait for it too
        finally:
            self.waiting -= 1

    async def _look_up(self, name: str) -> list[str]:
        await self._free.acquire()  # the time of a name runs once a thread asks for it
        loop = asyncio.get_running_loop()
        started = loop.time()
        asked = loop.run_in_executor(self._threads, _addresses, name)
        asked.add_done_callback(lambda _: self._free.release())
        keep_s = CACHE_S
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(asked)
        except TimeoutError:
            asked.add_done_callback(_ignore)
            keep_s = SILENT_S
            detail = f"no answer for {name} after {self._timeout_s:g} s"
            raise Failure("dns", detail, SILENT_S) from None
        except OSError as error:
            detail = f"{name}: {error.strerror or error}"
            if error.errno in LASTING_ERRORS:
                raise Failure("dns", detail) from error
            silent = loop.time() - started > QUICK_S
            keep_s = SILENT_S if silent else 0.0
            raise Failure("dns", detail, SILENT_S if silent else None) from error
        finally:
            self._expires[name] = loop.time() + keep_s


def _ignore(lookup: asyncio.Future[list[str]]) -> None:
    """Takes the error of a look-up that was given up, which asyncio would report else."""
    if not lookup.cancelled():
        lookup.exception()


def _addresses(name: str) -> list[str]:
    found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys(str(place[0]) for *_, place in found)
    return [address for address in addresses if "%" not in address]
