"""Lists that try to reach the machines around the downloader, or another protocol."""

import itertools
import socket

import pytest
from download_support import config, reason, rows_of
from scripted_server import body, redirect, serving

from pipelines.data.fetch.download import download

SCHEMES = (
    "gopher://{place}/_GET%20/secret",
    "file:///etc/passwd",
    "file://{place}/etc/passwd",
    "ftp://{place}/secret",
    "dict://{place}/secret",
    "ldap://{place}/secret",
    "scp://{place}/secret",
    "unix:///var/run/docker.sock",
    "jar:http://{place}/secret!/",
    "gopher+http://{place}/secret",
)
METADATA = (
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "169.16689662",
    "169.254.43518",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "169.254.169.254.",
    "100.100.100.200",
    "168.63.129.16",
)


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_protocol_but_http_is_spoken(server, scheme):
    url = scheme.format(place=f"127.0.0.1:{server.port}")
    server.script["/hop"] = redirect(url)
    server.script["/secret"] = body()
    assert reason(url) == "bad_url"
    assert reason(server.url("/hop")) == "bad_url"
    assert server.asked("/secret") == 0


@pytest.mark.parametrize("host", METADATA)
def test_metadata_addresses_are_refused_however_they_are_written_or_reached(server, host):
    url = f"http://{host}/latest/meta-data/"
    server.script["/hop"] = redirect(url)
    assert reason(url) == "private_address"
    assert reason(server.url("/hop")) == "private_address"


def test_a_name_that_changes_its_address_is_never_connected_to_a_private_one(server, monkeypatch):
    """DNS rebinding: harmless when it is checked, private when it is connected to."""
    # A public address that has no way to it from here costs the test half a second at most.
    answers = itertools.cycle([["2001:4860:4860::8888"], ["127.0.0.1"], ["::1", "127.0.0.1"]])
    looked_up = []

    def answer(name, *_, **__):
        looked_up.append(name)
        kinds = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (kinds[":" in address], socket.SOCK_STREAM, 6, "", (address, 0))
            for address in next(answers)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr("pipelines.data.fetch.hosts.CACHE_S", 0.0)
    server.script["/secret"] = body()
    url = server.url("/secret", "rebind.example")
    rows = list(download(rows_of(*[url] * 12), config(connections=1, timeout_s=0.5)))
    assert len(looked_up) > 3
    assert server.asked("/secret") == 0
    assert all(row.get("data") is None for row in rows)
    assert "private_address" in {row["reason"] for row in rows}
