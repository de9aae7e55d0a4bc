"""A server that takes a request and then says nothing, or half of what it began, is given up by all
ways in which this project reads and writes elsewhere, in one line."""

import socket
import threading
import time
from contextlib import suppress

import pytest

from caft.errors import CAFTError
from pipelines import ownership, storage
from pipelines.data.sources import places

HALF = b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nETag: "x"\r\n'
HALF += b"Last-Modified: Mon, 30 Nov 2026 10:00:00 GMT\r\n\r\n"


class Stalling:
    """A server on loopback; `half`: it answers with headers and the first bytes of a body."""

    def __init__(self, half: bool) -> None:
        self._half = half
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client = self._socket.accept()[0]
                self._open.append(client)
                if self._half:
                    threading.Thread(target=self._begin, args=(client,), daemon=True).start()

    def _begin(self, client: socket.socket) -> None:
        with suppress(OSError):
            while request := client.recv(65536):
                head = request.startswith(b"HEAD")
                client.sendall(HALF if head else HALF + b"x" * 1000)
                if not head:
                    return

    def close(self) -> None:
        for one in (self._socket, *self._open):
            one.close()


@pytest.fixture(params=[False, True], ids=["says nothing", "half a body"])
def server(request, monkeypatch):
    for name, value in {"CONNECT_S": 1.0, "REQUEST_S": 1.0, "S3_TRIES": 2}.items():
        monkeypatch.setattr(storage, name, value)
    stalling = Stalling(request.param)
    monkeypatch.setenv("AWS_ENDPOINT_URL", stalling.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stalled")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stalled")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    caches = (storage._s3, storage._fsspec, ownership._s3_client)
    for cached in caches:
        cached.cache_clear()
    yield stalling
    stalling.close()
    for cached in caches:
        cached.cache_clear()


OPERATIONS = {
    "read": lambda server: storage.read_bytes("s3://bucket/file"),
    "digest": lambda server: storage.sha256("s3://bucket/file"),
    "folder": lambda server: storage.list_files("s3://bucket/folder"),
    "write": lambda server: storage.write_bytes("s3://bucket/file", b"x"),
    "claim": lambda server: ownership._create_on_s3("s3://bucket/owner.json", b"{}"),
    "list on S3": lambda server: places.read_bytes("s3://bucket/list.csv"),
    "list on the web": lambda server: places.read_bytes(f"{server.address}/list.csv"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_stalls_is_given_up_in_one_line(name, server):
    began = time.monotonic()
    with pytest.raises((CAFTError, OSError)) as caught:
        OPERATIONS[name](server)
    assert time.monotonic() - began < 60
    assert str(caught.value).strip()
    assert len(str(caught.value).splitlines()) == 1
    assert "credentials" not in str(caught.value)


def test_the_limits_leave_two_minutes():
    """botocore and Arrow wait twice as long each time, to 20 s."""
    waits = sum(min(2.0**n, 20.0) for n in range(storage.S3_TRIES - 1))
    assert storage.S3_TRIES * max(storage.REQUEST_S, storage.CONNECT_S) + waits <= 120
    assert sum(storage.S3_WAITS_S) >= 120  # of a store that answers, and refuses for now
