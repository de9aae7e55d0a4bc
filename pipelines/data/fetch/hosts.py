"""How politely one host is asked: so many requests at a time, none while it asks for a pause.
Every request of the downloader waits here for its place."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from pipelines.data.reasons import REASONS

CACHE_S = 600.0
LASTING_ERRORS = (socket.EAI_NONAME, socket.EAI_NODATA)  # kept like answers; others ask again


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
        self._timeout_s = timeout_s
        self._lookups: dict[str, tuple[float, asyncio.Future[list[str]]]] = {}

    def close(self) -> None:
        """Give up what is being looked up."""
        for _, lookup in self._lookups.values():
            lookup.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def addresses(self, name: str) -> list[str]:
        """The addresses of a host name.

        Raises:
            Failure: it has none, or there is no answer in time.
        """
        now = asyncio.get_running_loop().time()
        expires, lookup = self._lookups.get(name, (0.0, None))
        if lookup is None or now >= expires or _failed_for_now(lookup):
            lookup = asyncio.get_running_loop().run_in_executor(self._threads, _addresses, name)
            self._lookups[name] = now + CACHE_S, lookup
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(lookup)  # others wait for it too
        except TimeoutError:
            detail = f"no answer for {name} after {self._timeout_s:g} s"
            raise Failure("dns", detail) from None
        except OSError as error:
            raise Failure("dns", f"{name}: {error.strerror}") from error


def _failed_for_now(lookup: asyncio.Future[list[str]]) -> bool:
    if not lookup.done():
        return False
    error = lookup.exception()
    return isinstance(error, OSError) and error.errno not in LASTING_ERRORS


def _addresses(name: str) -> list[str]:
    found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys(str(place[0]) for *_, place in found)
    return [address for address in addresses if "%" not in address]
