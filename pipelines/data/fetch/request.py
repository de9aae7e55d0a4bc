"""One HTTP request on libcurl: its options, its limits, and what its answer means.
Used by fetcher.py for every try and redirect; handles are used again, one request at a time."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import certifi
import pycurl

from caft.errors import ConfigError
from pipelines.data.config import DownloadConfig
from pipelines.data.fetch.addresses import Target, is_public, normal_host
from pipelines.data.fetch.hosts import Failure

FORBIDDING = ("noai", "noimageai", "noindex", "noimageindex")
RULES_WITH_VALUES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
WITH_IMAGE = (200, 201, 203, 226)  # statuses whose body is what was asked for
REDIRECTS = (301, 302, 303, 307, 308)
REFUSALS = (429, 503)  # a Retry-After of these is for the whole host
UNWANTED_BYTES = 2**16  # of an error page: read, so that the connection can be used again
READ_BYTES = 2**17
CURL_REASONS = {
    pycurl.E_URL_MALFORMAT: "bad_url",
    pycurl.E_COULDNT_RESOLVE_HOST: "dns",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_FILESIZE_EXCEEDED: "too_large",
    pycurl.E_SSL_CONNECT_ERROR: "tls",
    pycurl.E_PEER_FAILED_VERIFICATION: "tls",
    pycurl.E_SSL_CIPHER: "tls",
    pycurl.E_SSL_INVALIDCERTSTATUS: "tls",
    pycurl.E_SSL_ISSUER_ERROR: "tls",
    pycurl.E_UNSUPPORTED_PROTOCOL: "bad_answer",  # it is not HTTP/1
    pycurl.E_FTP_WEIRD_SERVER_REPLY: "bad_answer",
    pycurl.E_BAD_CONTENT_ENCODING: "bad_answer",
    100: "bad_answer",  # endless headers; pycurl has no name for it
}


class Answer(NamedTuple):
    """A body, or the place where it is, and the cookies to bring there."""

    body: bytes
    location: str | None
    cookies: list[str]  # as libcurl lists them, with their hosts


class Transfer:
    """A libcurl handle that makes one request after another."""

    def __init__(self, config: DownloadConfig, allowed_hosts: frozenset[str]) -> None:
        self._config, self._allowed_hosts = config, allowed_hosts
        self._sockets: list[socket.socket] = []
        self._curl = self._handle()

    def _handle(self) -> pycurl.Curl:
        curl = pycurl.Curl()
        for option, value in _options(self._config).items():
            curl.setopt(option, value)
        curl.setopt(pycurl.OPENSOCKETFUNCTION, self._on_open)
        curl.setopt(pycurl.PREREQFUNCTION, self._on_connected)
        curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        return curl

    def close(self) -> None:
        self._curl.close()

    async def get(
        self,
        multi: pycurl.AsyncCurlMulti,
        target: Target,
        addresses: list[str],
        cookies: Sequence[str] = (),
    ) -> Answer:
        """Make one request, to one of `addresses`; none: libcurl knows them by itself. May be
        cancelled at any time: the connection is then closed.

        Raises:
            Failure: there is no body and no other place.
        """
        self._begin(target)
        self._curl.setopt(pycurl.URL, target.url)
        for line in ("ALL", *cookies):  # first forget those of another row
            self._curl.setopt(pycurl.COOKIELIST, line)
        if addresses:
            place = f"+{target.host}:{target.port}:{','.join(addresses)}"
            self._curl.setopt(pycurl.RESOLVE, [place])
        else:
            self._curl.unsetopt(pycurl.RESOLVE)
        done = multi.add_handle(self._curl)
        try:
            error = await self._end(done)
        finally:
            if not done.done():
                with suppress(RuntimeError):  # ended just now: libcurl's side has let it go already
                    multi.remove_handle(self._curl)
                self._curl.close()
                self._curl = self._handle()  # `multi` may still undo the old one a turn later
            self._close_sockets()
        return self._answer(error)

    def _begin(self, target: Target) -> None:
        self._private_allowed = target.host in self._allowed_hosts
        self._failure: Failure | None = None
        self._connected = False
        self._status = 0
        self._headers: list[bytes] = []
        self._in_body = False
        self._pieces: list[bytes] = []
        self._received_bytes = 0
        self._last_byte_s = time.monotonic()

    async def _end(self, done: asyncio.Future[pycurl.Curl]) -> BaseException | None:
        """What ended the request; None: its answer is complete."""
        timeout_s = self._config.timeout_s
        while not done.done():
            left_s = self._last_byte_s + timeout_s - time.monotonic()
            if left_s <= 0:
                what = "no byte for" if self._connected else "not connected after"
                return Failure("timeout", f"{what} {timeout_s:g} s")
            await asyncio.wait([done], timeout=left_s)
        return done.exception()

    # What libcurl calls, in this order. None of these may raise.

    def _on_open(self, purpose: int, address: Any) -> socket.socket | int:
        if not self._may_connect(address.addr[0]):
            return pycurl.SOCKET_BAD
        opened = socket.socket(address.family, address.socktype, address.protocol)
        self._sockets.append(opened)  # libcurl gets a copy: this one is to be closed here
        return opened

    def _on_connected(self, remote: str, local: str, remote_port: int, local_port: int) -> int:
        self._connected = True
        self._close_sockets()
        self._last_byte_s = time.monotonic()
        # Asked again because a connection that was open already gets here without a socket.
        if not self._may_connect(remote):
            return pycurl.PREREQFUNC_ABORT
        self._failure = None  # of another address of the host, that was passed over
        return pycurl.PREREQFUNC_OK

    def _close_sockets(self) -> None:
        while self._sockets:
            self._sockets.pop().close()

    def _may_connect(self, address: Any) -> bool:
        if self._private_allowed or is_public(str(address)):
            return True
        self._failure = Failure("private_address", f"the host is {address}")
        return False

    def _on_header(self, line: bytes) -> int:
        self._last_byte_s = time.monotonic()
        if self._in_body:  # a trailer
            return len(line)
        if line.startswith(b"HTTP/"):
            words = line.split(None, 2)
            self._status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
            self._headers = []
        elif line.strip():
            self._headers.append(line)
        elif self._status >= 200:
            self._in_body = True
            if self._status in WITH_IMAGE and self._forbidden():
                self._failure = Failure("noai", "X-Robots-Tag of the answer")
                return -1
        return len(line)

    def _on_body(self, piece: bytes) -> int:
        self._last_byte_s = time.monotonic()
        self._received_bytes += len(piece)
        if self._status not in WITH_IMAGE:
            return len(piece) if self._received_bytes <= UNWANTED_BYTES else -1
        if self._received_bytes > self._config.max_bytes:
            self._failure = Failure("too_large", f"more than {self._config.max_bytes} bytes")
            self._pieces = []
            return -1
        self._pieces.append(piece)
        return len(piece)

    def _forbidden(self) -> bool:
        if not self._config.respect_robots_tag:
            return False
        token = self._config.user_agent_token.strip().lower()
        return any(_forbids(value, token) for value in _values(self._headers, b"x-robots-tag"))

    def _answer(self, error: BaseException | None) -> Answer:
        body, headers = b"".join(self._pieces), self._headers
        self._pieces, self._headers = [], []
        if self._failure is not None and error is not None:
            raise self._failure
        if self._status >= 300:  # however its body ended
            place = _location(self._status, headers)
            return Answer(b"", place, self._curl.getinfo(pycurl.INFO_COOKIELIST))
        if error is not None:
            raise _failure_of(error)
        if self._status not in WITH_IMAGE:
            raise Failure("http_status", f"HTTP {self._status}")
        return Answer(body, None, [])


def _options(config: DownloadConfig) -> dict[int, Any]:
    return {
        pycurl.COOKIEFILE: "",  # knows cookies, and reads none
        pycurl.PROXY: "",  # whatever the environment says: a proxy would resolve names unchecked
        pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.USERAGENT: (
            f"Mozilla/5.0 (compatible; {config.user_agent_token}; image dataset builder)"
        ),
        pycurl.ACCEPT_ENCODING: "identity",  # and decodes what comes encoded all the same
        pycurl.CAINFO: certifi.where(),
        pycurl.CONNECTTIMEOUT_MS: max(1, round(1000 * config.timeout_s)),
        pycurl.MAXFILESIZE_LARGE: config.max_bytes,
        pycurl.BUFFERSIZE: READ_BYTES,
        pycurl.NOSIGNAL: 1,  # signals are not for threads
    }


def allowed_hosts(config: DownloadConfig) -> frozenset[str]:
    """`config.allow_private_hosts` as hosts are compared.

    Raises:
        ConfigError: one of them is no host's name.
    """
    try:
        return frozenset(normal_host(host.strip("[]")) for host in config.allow_private_hosts)
    except ValueError as error:
        raise ConfigError(
            f"download.allow_private_hosts: {error}; give host names without scheme and port"
        ) from error


def _location(status: int, headers: list[bytes]) -> str:
    """Where a redirect leads; any other status raises."""
    if status not in REDIRECTS:
        raise _status_failure(status, _header(headers, b"retry-after"))
    location = _header(headers, b"location")
    if not location:
        raise Failure("redirects", f"HTTP {status} without a Location")
    return location


def _status_failure(status: int, retry_after: str | None) -> Failure:
    reason = {4: "http_4xx", 5: "http_5xx"}.get(status // 100, "http_status")
    if status == 429:
        reason = "http_429"
    seconds = _seconds(retry_after) if retry_after and status in REFUSALS else None
    return Failure(reason, f"HTTP {status}", seconds)


def _forbids(rules: str, token: str) -> bool:
    """Whether the value of an X-Robots-Tag forbids our use: its rules are for all, or for those
    whose name stands in front of them with a colon."""
    meant = None
    for rule in rules.lower().split(","):
        name, colon, rest = rule.partition(":")
        if colon and name.strip() not in RULES_WITH_VALUES:
            meant, rule = name.strip(), rest
        if meant in (None, token) and rule.strip() in FORBIDDING:
            return True
    return False


def _header(headers: list[bytes], name: bytes) -> str | None:
    return next(_values(headers, name), None)


def _values(headers: list[bytes], name: bytes) -> Iterator[str]:
    for line in headers:
        found, _, value = line.partition(b":")
        if found.strip().lower() == name:
            try:
                yield value.strip().decode()
            except UnicodeDecodeError:
                yield value.strip().decode("latin-1")


def _seconds(retry_after: str) -> float | None:
    """From now, of a Retry-After in seconds or as a date; None: it is neither."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _failure_of(error: BaseException) -> Failure:
    if not isinstance(error, pycurl.error):  # a Failure, or what must not happen
        raise error
    code, message = error.args[0], str(error.args[1]) or f"libcurl's error {error.args[0]}"
    reason = CURL_REASONS.get(code, "connection")
    if reason == "tls" and ("SYSCALL" in message or "reset" in message.lower()):
        reason = "connection"  # it broke off; nothing was wrong with the certificate
    return Failure(reason, message)
