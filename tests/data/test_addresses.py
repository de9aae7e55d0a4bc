"""Which URLs and addresses the downloader accepts, under all the names they can be given."""

import socket

import pytest
from download_support import config, fetch, reason, rows_of
from scripted_server import body, redirect, serving

from caft.errors import ConfigError
from pipelines.data.fetch.addresses import is_public
from pipelines.data.fetch.download import download


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.mark.parametrize(
    "place", ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:,x", "http://[::1"]
)
def test_redirects_leave_no_scheme_but_http(server, place):
    server.script["/"] = redirect(place)
    assert reason(server.url("/")) == "bad_url"


PRIVATE = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "127.0.0.1.",
    "localhost",
    "LOCALHOST.",
    "0.0.0.0",
    "0",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::1]",
    "[2002:7f00:1::]",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "169.254.169.254",
    "10.0.0.1",
    "100.100.100.200",
    "192.168.1.1",
    "172.16.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "user:password@127.0.0.1",
    "8.8.8.8@127.0.0.1",
    "allowed@127.0.0.1",
    "127.0.0.1\\@allowed",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_refused_under_every_name(server, host):
    server.script["/hop"] = redirect(server.url("/secret", host))
    only = {"allow_private_hosts": ("allowed", "a.localhost")}
    assert reason(server.url("/secret", host), **only) == "private_address"
    assert reason(server.url("/hop", "a.localhost"), **only) == "private_address"
    assert server.asked("/secret") == 0


def test_numbers_in_other_scripts_are_the_same_addresses():
    assert reason("http://１２７.0.0.1/", allow_private_hosts=()) == "private_address"


def test_public_addresses_are_no_others():
    public = "8.8.8.8 1.1.1.1 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1"
    assert all(is_public(address) for address in public.split())
    for address in ("192.0.2.1", "192.88.99.1", "240.0.0.1", "3fff::1", "::8.8.8.8", "x", ""):
        assert not is_public(address), address


def test_allowed_hosts_are_compared_as_names(server):
    server.script["/"] = body()
    for host in ("LocalHost.", "user:password@localhost"):
        assert fetch(server.url("/", host), allow_private_hosts=("localhost",))["data"]
    assert not any("Authorization" in headers for _, _, headers in server.requests)
    with pytest.raises(ConfigError, match="allow_private_hosts"):
        fetch(server.url("/"), allow_private_hosts=("http://localhost/",))


def test_names_are_looked_up():
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        pytest.skip("this machine's name has no address")
    with serving(address=address) as server:
        server.script = {"/": redirect("/image"), "/image": body()}
        rows = rows_of(*[server.url("/", name)] * 10)
        assert all(row["data"] for row in download(rows, config(allow_private_hosts=(name,))))
        assert {host for host, _, _ in server.requests} == {name.lower()}


def test_a_connection_of_an_allowed_host_serves_no_other(server):
    server.script["/"] = body()
    urls = [server.url("/", host) for host in ("a.localhost", "b.localhost", "127.0.0.1")]
    one = config(connections=1, allow_private_hosts=("a.localhost",))
    rows = list(download(rows_of(*urls, urls[0]), one))
    assert [row["reason"] for row in rows] == [None, "private_address", "private_address", None]


BAD = [
    None,
    7,
    "",
    "images/a.jpg",
    "ftp://example.org/a.jpg",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "//example.org/a.jpg",
    "http:///a.jpg",
    "http://a b/",
    "http://[::1/",
    "http://[fe80::1%25eth0]/",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:port/",
    "http://127.0.0.1:0/",
    "http://exa%6dple.org/",
    "http://" + "a." * 200 + "org/",
    "http://\ud800/",
    "http://ex\x00ample.org/",
    "http://" + "é" * 300 + ".org/",
]


@pytest.mark.parametrize("url", BAD)
def test_urls_that_are_none(url):
    assert reason(url) == "bad_url"


def test_urls_are_read_as_browsers_read_them(server):
    odd = {
        " {}/a b\tc.jpg\n": "/a%20bc.jpg",
        "{}/é/%C3%A9/100%": "/%C3%A9/%C3%A9/100%",
        "{}\\a\\b": "/a/b",
        "{}?q=a b&c=\\": "/?q=a%20b&c=%5C",
        "{}/a#fragment": "/a",
        '{}/<">{{}}\x00`': "/%3C%22%3E%7B%7D%00%60",
        "{}/\ud800": "/%3F",
    }
    for text, expected in odd.items():
        url = text.format(server.url("").upper())
        fetch(url)
        assert server.requests[-1][1] == expected
