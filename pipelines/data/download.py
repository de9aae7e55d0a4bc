"""Fetches images with img2dataset's downloader behind an opener that guards addresses and sizes.
A batch of rows in, the same rows with bytes or with the reason why there are none."""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from img2dataset.downloader import download_image

from pipelines.data.config import DownloadConfig

FORBIDDING = ("noai", "noimageai", "noindex", "noimageindex")
TRANSIENT = {"timeout", "connection", "dns", "http_5xx"}
READ_BYTES = 2**16


class Refused(OSError):
    """A request this project does not make; its text starts with the reject reason."""


def download(rows: list[dict[str, Any]], config: DownloadConfig) -> list[dict[str, Any]]:
    """Fetch the `url` of every row that has no `reason` yet.

    Returns:
        the rows, in order, with `data` (bytes) added, or `reason` and `detail`.
    """
    urllib.request.install_opener(_guarded_opener(config))  # the one img2dataset goes through
    with ThreadPoolExecutor(config.threads) as threads:
        return list(threads.map(lambda row: _fetch(row, config), rows))


def _fetch(row: dict[str, Any], config: DownloadConfig) -> dict[str, Any]:
    if row["reason"] is not None:
        return row
    parts = urlsplit(row["url"])
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return row | {"reason": "bad_url", "detail": row["url"][:200]}
    for _ in range(config.retries + 1):
        _, stream, error = download_image(
            (None, row["url"]), config.timeout_s, config.user_agent_token, FORBIDDING
        )
        if stream is not None:
            return row | {"data": stream.getvalue()}
        reason = reason_of(error)
        if reason not in TRANSIENT:
            break
    return row | {"reason": reason, "detail": error[:200]}


def reason_of(error: str) -> str:
    """The reject reason for the text of an error that img2dataset hands back."""
    if match := re.match(
        r"(private_address|too_large|timeout): ", error.split("urlopen error ")[-1]
    ):
        return match[1]
    if match := re.match(r"HTTP Error (\d)", error):
        return {"4": "http_4xx", "5": "http_5xx"}.get(match[1], "http_other")
    lowered = error.lower()
    if "x-robots-tag" in lowered:
        return "noai"
    if "timed out" in lowered:
        return "timeout"
    if (
        "name or service not known" in lowered
        or "name resolution" in lowered
        or "no address" in lowered
    ):
        return "dns"
    if "unknown url type" in lowered or "no host given" in lowered or "nonnumeric port" in lowered:
        return "bad_url"
    return "connection"


def _guarded_opener(config: DownloadConfig) -> urllib.request.OpenerDirector:
    """An opener for http and https alone: no file, ftp or data URL, and no proxy."""
    connect = _guarded_connect(frozenset(config.allow_private_hosts))

    class Connection(http.client.HTTPConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._create_connection = connect

    class SecureConnection(http.client.HTTPSConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._create_connection = connect

    class HTTPHandler(urllib.request.HTTPHandler):
        def http_open(self, request: Any) -> Any:
            return self.do_open(Connection, request)

    class HTTPSHandler(urllib.request.HTTPSHandler):
        def https_open(self, request: Any) -> Any:
            return self.do_open(SecureConnection, request)

    class Redirects(urllib.request.HTTPRedirectHandler):
        max_redirections = config.max_redirects

    class Limits(urllib.request.BaseHandler):
        handler_order = 900  # after redirects and errors: only the final answer is wrapped

        def http_response(self, request: Any, response: Any) -> Any:
            return _Limited(response, config)

        https_response = http_response

    opener = urllib.request.OpenerDirector()
    for handler in (
        HTTPHandler(),
        HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        Redirects(),
        urllib.request.HTTPErrorProcessor(),
        Limits(),
    ):
        opener.add_handler(handler)
    return opener


class _Limited:
    """A response whose body is bounded in bytes and in seconds."""

    def __init__(self, response: Any, config: DownloadConfig) -> None:
        self._response, self._config = response, config
        self.headers, self.code, self.msg = response.headers, response.code, response.msg
        self._deadline = time.monotonic() + config.deadline_s

    def read(self) -> bytes:
        body = bytearray()
        while piece := self._response.read1(READ_BYTES):
            body += piece
            if len(body) > self._config.max_bytes:
                raise Refused(f"too_large: more than {self._config.max_bytes} bytes")
            if time.monotonic() > self._deadline:
                raise Refused(f"timeout: not complete after {self._config.deadline_s:g} s")
        declared = self.headers.get("Content-Length")
        if declared is not None and declared.isdigit() and len(body) < int(declared):
            raise OSError(f"the connection ended after {len(body)} of {declared} bytes")
        return bytes(body)

    def __enter__(self) -> _Limited:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)


def _guarded_connect(allowed: frozenset[str]) -> Any:
    """A `create_connection` that connects only to public addresses. It connects to the very
    address it checked, so a name cannot change its mind between the two."""

    def connect(
        address: tuple[str, int], timeout: float | None = None, source: Any = None
    ) -> socket.socket:
        host, port = address
        failure: OSError = OSError(f"no address for {host}")
        for family, kind, protocol, _, target in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            if not ipaddress.ip_address(str(target[0])).is_global and host not in allowed:
                raise Refused(f"private_address: {host} is {target[0]}")
            channel = socket.socket(family, kind, protocol)
            channel.settimeout(timeout)
            try:
                channel.connect(target)
            except OSError as error:
                channel.close()
                failure = error
                continue
            return channel
        raise failure

    return connect
