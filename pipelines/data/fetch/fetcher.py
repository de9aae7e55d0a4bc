"""One row from its URL to bytes: tries, redirects, back-off, and one deadline over all of it.
Between download.py, which runs many of these at once, and request.py, which makes a request."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any
from urllib.parse import urljoin

import pycurl

from pipelines.data.config import DownloadConfig
from pipelines.data.fetch.addresses import Target, needs_lookup, parse_target
from pipelines.data.fetch.hosts import Failure, Host, Names
from pipelines.data.fetch.request import Answer, Transfer, allowed_hosts
from pipelines.data.reasons import REASONS

DETAIL_CHARS = 200
THREADS_PER_CONNECTION = 8  # for names at most: look-ups that were given up still hold theirs


class Fetcher:
    """Fetches rows of one event loop; no request starts while `gate` is closed."""

    def __init__(self, config: DownloadConfig, gate: asyncio.Event) -> None:
        self._config, self._gate = config, gate
        self._allowed_hosts = allowed_hosts(config)
        self._hosts: dict[str, Host] = defaultdict(
            lambda: Host(config.connections_per_host, config.deadline_s)
        )
        self._names = Names(THREADS_PER_CONNECTION * config.connections, config.timeout_s)
        self._connections = asyncio.Semaphore(config.connections)
        self._multi = pycurl.AsyncCurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, 2 * config.connections)
        self._idle: list[Transfer] = []

    @property
    def rows_without_address(self) -> int:
        """Rows that wait for the answer to a name."""
        return self._names.waiting

    async def close(self) -> None:
        """Close all connections, once no row is being fetched."""
        self._names.close()
        await self._multi.aclose()
        for transfer in self._idle:
            transfer.close()

    async def fetch(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with `data`, or with `reason` and `detail`."""
        try:
            async with asyncio.timeout(None) as limit:
                return row | {"data": await self._try(row["url"], limit)}
        except TimeoutError:
            failure = Failure("timeout", f"not complete after {self._config.deadline_s:g} s")
        except Failure as error:
            failure = error
        detail = failure.detail.strip() or REASONS[failure.reason].text
        detail = detail[:DETAIL_CHARS].encode(errors="replace").decode()
        return row | {"reason": failure.reason, "detail": detail}

    async def _try(self, url: object, limit: asyncio.Timeout) -> bytes:
        now = asyncio.get_running_loop().time
        backoff_s = self._config.backoff_s
        retries = self._config.retries
        while True:
            try:
                return await self._follow(url, limit)
            except Failure as failure:
                wait_s = failure.retry_after_s
                if wait_s is None:
                    wait_s = backoff_s * random.uniform(0.5, 1.5)
                deadline = limit.when()
                if not (failure.transient and retries and deadline and now() + wait_s < deadline):
                    raise
            await asyncio.sleep(wait_s)
            retries -= 1
            backoff_s *= 2

    async def _follow(self, url: object, limit: asyncio.Timeout) -> bytes:
        target = _target("", url)
        cookies: list[str] = []
        for _ in range(self._config.max_redirects + 1):
            answer = await self._request(target, cookies, limit)
            if answer.location is None:
                return answer.body
            target, cookies = _target(target.url, answer.location), answer.cookies
        raise Failure("redirects", f"more than {self._config.max_redirects}")

    async def _request(self, target: Target, cookies: list[str], limit: asyncio.Timeout) -> Answer:
        host = self._hosts[target.host]
        addresses = await self._addresses(target.host, limit)  # before it holds a connection
        async with host.place(limit.when()), self._connections:
            while not self._gate.is_set():
                await self._gate.wait()
            self._start(limit)  # waiting for a first place is not the row's own time
            try:
                answer = await self._transfer(target, addresses, cookies)
            except Failure as failure:
                if failure.retry_after_s is not None:
                    host.refused(failure)
                raise
            host.answered()
            return answer

    async def _addresses(self, host: str, limit: asyncio.Timeout) -> list[str]:
        """None where libcurl knows them by itself."""
        if not needs_lookup(host):
            return []
        try:
            return await self._names.addresses(host)
        except Failure:
            self._start(limit)
            raise

    def _start(self, limit: asyncio.Timeout) -> None:
        if limit.when() is None:
            limit.reschedule(asyncio.get_running_loop().time() + self._config.deadline_s)

    async def _transfer(self, target: Target, addresses: list[str], cookies: list[str]) -> Answer:
        if not self._idle:
            self._idle.append(Transfer(self._config, self._allowed_hosts))
        transfer = self._idle.pop()
        try:
            return await transfer.get(self._multi, target, addresses, cookies)
        finally:
            self._idle.append(transfer)


def _target(base: str, place: object) -> Target:
    try:
        return parse_target(urljoin(base, place) if isinstance(place, str) else place)
    except ValueError as error:
        raise Failure("bad_url", f"{error} ({place})") from error
