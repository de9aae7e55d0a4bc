"""Host names to addresses, in threads of their own: a name server that does not answer holds up
only the rows of its names. libcurl's own lookups share a few threads, which such names fill."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from pipelines.data.hosts import Failure

CACHE_S = 600.0
LASTING_ERRORS = (socket.EAI_NONAME, socket.EAI_NODATA)  # kept like answers; others ask again


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
