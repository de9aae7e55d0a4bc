"""Downloads against a real server on loopback: limits, politeness, and nothing that escapes."""

import datetime
import email.utils
import gzip
import itertools
import socket
import threading
import time

import pytest
from download_support import config, fetch, reason, rows_of
from scripted_server import (
    body,
    one_after_another,
    paused_host,
    raw,
    redirect,
    serving,
    slow,
    status,
)

from pipelines.data.fetch.download import download

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def server():
    with serving() as server:
        yield server


def test_each_row_comes_back_once_with_its_bytes(server):
    urls = [server.url(f"/{i}") for i in range(300)]
    server.script = {f"/{i}": body(b"%d" % i) for i in range(300)}
    rows = list(download(rows_of(*urls), config(connections=8, connections_per_host=8)))
    assert sorted(row["url"] for row in rows) == sorted(urls)
    assert all(row["data"] == row["url"].rsplit("/")[-1].encode() for row in rows)
    assert all(row["reason"] is None for row in rows)


def test_rows_that_need_nothing_pass_at_once(server):
    server.script["/slow"] = slow(0.5, body())
    rejected = {"url": "x", "reason": "no_caption", "detail": "none"}
    local = {"url": "/a/file.jpg", "reason": None, "data": b"local"}
    rows = [*rows_of(server.url("/slow")), rejected, local]
    assert list(download(rows, config()))[:2] == [rejected, local]


def test_an_empty_body_is_left_to_the_decoder(server):
    server.script["/empty"] = body(b"")
    assert fetch(server.url("/empty"))["data"] == b""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (204, "http_status"),
        (206, "http_status"),
        (304, "http_status"),
        (404, "http_4xx"),
        (410, "http_4xx"),
        (429, "http_429"),
        (500, "http_5xx"),
        (503, "http_5xx"),
        (999, "http_status"),
    ],
)
def test_statuses(server, code, expected):
    server.script["/"] = status(code)
    assert reason(server.url("/")) == expected


@pytest.mark.parametrize("code", [201, 203, 226])
def test_an_image_with_another_good_status_is_an_answer(server, code):
    server.script["/"] = status(code, b"image")
    assert fetch(server.url("/"))["data"] == b"image"


def test_a_redirect_takes_along_the_cookie_that_it_has_just_set(server):
    def gate(request):
        known = request.headers.get("Cookie") == "seen=1"
        (body() if known else status(302, Location="/gate", Set_Cookie="seen=1"))(request)

    server.script = {"/gate": gate, "/other": redirect(server.url("/end", "b.localhost"))}
    server.script["/end"] = body()
    assert fetch(server.url("/gate"))["data"] == b"image"
    urls = [server.url("/gate"), server.url("/other")]
    rows = list(download(rows_of(*urls), config(connections=1)))
    assert [row["reason"] for row in rows] == [None, None]
    sent = {(host, path): headers.get("Cookie") for host, path, headers in server.requests}
    assert sent["127.0.0.1", "/other"] is sent["b.localhost", "/end"] is None


def test_names_that_do_not_answer_hold_up_no_other_row(server, monkeypatch):
    asked = []
    closed = threading.Event()
    known = socket.getaddrinfo

    def silent(name, *args, **options):
        if name.endswith(b".example"):
            asked.append(name)
            closed.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "no server answers")
        return known(b"localhost", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    server.script["/"] = slow(0.02, body())
    allowed = ("known.test",)
    rows = []
    for n in range(400):  # a fifth is silent: half of it under one name, half each its own
        name = f"x{n if n % 10 == 0 else 0}.example" if n % 5 == 0 else "known.test"
        rows += rows_of(server.url("/", name))
    quick = config(
        connections=8, connections_per_host=8, timeout_s=1.5, retries=2, allow_private_hosts=allowed
    )
    started = time.perf_counter()
    done = list(download(rows, quick))
    seconds = time.perf_counter() - started
    closed.set()
    reasons = [row["reason"] for row in done]
    assert (reasons.count(None), reasons.count("dns")) == (320, 80)
    assert len(asked) == len(set(asked)) == 40
    assert seconds < 5


def test_large_bodies_are_refused_declared_streamed_and_packed(server):
    chunk = b"400\r\n" + bytes(1024) + b"\r\n"
    server.script = {
        "/declared": raw(HEAD + b"Content-Length: 100001\r\n\r\n", then_wait=True),
        "/lying": raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 200),
        "/endless": raw(HEAD + b"\r\n", *[bytes(1024)] * 200),
        "/bomb": body(gzip.compress(bytes(10**7)), Content_Encoding="gzip"),
        "/packed": body(gzip.compress(b"image"), Content_Encoding="gzip"),
        "/fits": body(bytes(100_000)),
    }
    limit = {"max_bytes": 100_000}
    for path in ("/declared", "/lying", "/endless", "/bomb"):
        assert reason(server.url(path), **limit) == "too_large", path
    assert len(fetch(server.url("/fits"), **limit)["data"]) == 100_000
    assert fetch(server.url("/packed"), **limit)["data"] == b"image"
    assert server.requests[0][2]["Accept-Encoding"] == "identity"


def test_time_limits_hold_however_time_is_lost(server):
    head = HEAD + b"Content-Length: 1000\r\n\r\n"
    server.script = {
        "/silent": raw(then_wait=True),
        "/stalls": raw(head + b"x", then_wait=True),
        "/trickle": raw(head, *[b"x"] * 1000, every_s=0.05),
        "/headers": raw(HEAD, *[b"A: b\r\n"] * 1000, every_s=0.05),
        "/hops": slow(0.2, redirect("/hops")),
        "/busy": slow(0.2, status(500)),
    }
    idle = {"timeout_s": 0.3, "deadline_s": 60.0}
    assert "no byte" in fetch(server.url("/silent"), **idle)["detail"]
    assert "no byte" in fetch(server.url("/stalls"), **idle)["detail"]
    late = {"timeout_s": 60.0, "deadline_s": 0.7}
    for path in ("/trickle", "/headers", "/hops"):
        row = fetch(server.url(path), **late, max_redirects=1000)
        assert (row["reason"], row["detail"]) == ("timeout", "not complete after 0.7 s"), path
    assert reason(server.url("/busy"), **late, retries=1000) in ("timeout", "http_5xx")


def test_a_server_that_accepts_no_connection_is_a_timeout():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        url = f"http://127.0.0.1:{address[1]}/"
        assert reason(url, timeout_s=0.3, deadline_s=1.0) == "timeout"
        for filler in fillers:
            filler.close()


def test_redirects_are_followed_and_counted(server):
    server.script = {
        "/1": redirect("2?a=b"),
        "/2": redirect(server.url("/3", host="a.localhost"), 307),
        "/3": redirect(f"//127.0.0.1:{server.port}/im%20age é", 308),
        "/im%20age%20%C3%A9": body(b"there"),
        "/loop": redirect("/loop"),
        "/nowhere": status(302),
    }
    assert fetch(server.url("/1"), max_redirects=3)["data"] == b"there"
    assert reason(server.url("/1"), max_redirects=2) == "redirects"
    assert reason(server.url("/nowhere")) == "redirects"
    assert reason(server.url("/loop"), max_redirects=5) == "redirects"
    assert server.asked("/loop") == 6


def test_proxies_of_the_environment_are_passed_by(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.script["/"] = body()
    assert fetch(server.url("/"))["data"] == b"image"


def test_one_host_gets_few_requests_at_a_time_and_holds_up_no_other(server):
    server.script = {"/slow": slow(0.1, body()), "/quick": body()}
    urls = [server.url("/slow", "a.localhost")] * 20 + [server.url("/quick", "b.localhost")] * 20
    rows = list(download(rows_of(*urls), config(connections=16, connections_per_host=2)))
    assert len(rows) == 40
    assert all("/quick" in row["url"] for row in rows[:10])
    assert server.most_open["a.localhost"] == 2


def in_seconds(seconds):
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return email.utils.format_datetime(when, usegmt=True)


@pytest.mark.parametrize("date", [False, True])
def test_a_host_that_asks_for_a_pause_gets_it(server, date):
    refusals = []
    server.script["/"] = paused_host(0.9, in_seconds(2.5) if date else "1", refusals)
    urls = [server.url("/", "a.localhost")] * 12
    one = config(connections_per_host=1, retries=1)
    assert all(row["reason"] is None for row in download(rows_of(*urls), one))
    assert len(refusals) == 1


def test_a_host_that_refuses_everything_is_given_up(server):
    server.script["/"] = status(503, Retry_After="86400")
    urls = [server.url("/", "a.localhost")] * 12
    one = config(connections_per_host=1, retries=5, deadline_s=0.5)
    rows = list(download(rows_of(*urls), one))
    assert {row["reason"] for row in rows} == {"http_5xx"}
    assert "wait" in rows[-1]["detail"]
    assert len(server.requests) == 2


def test_a_refusal_of_one_url_does_not_cost_its_host_the_others(server):
    server.script = {"/refused": status(429, Retry_After="86400"), "/": body()}
    urls = [server.url("/refused"), *[server.url("/")] * 12]
    one = config(connections_per_host=1, retries=5, deadline_s=0.5)
    assert [row["reason"] for row in download(rows_of(*urls), one)] == ["http_429"] + [None] * 12


def test_transient_failures_are_tried_again_and_others_not(server):
    cut = raw(HEAD + b"Content-Length: 1000\r\n\r\nshort")
    server.script = {
        "/500": one_after_another(status(500), status(502), body()),
        "/cut": one_after_another(cut, body()),
        "/gone": one_after_another(raw(), body()),
        "/always": cut,
        "/404": one_after_another(status(404), body()),
    }
    for path in ("/500", "/cut", "/gone"):
        assert fetch(server.url(path), retries=2)["data"] == b"image", path
    assert reason(server.url("/404"), retries=2) == "http_4xx"
    assert reason(server.url("/always"), retries=2) == "connection"
    assert (server.asked("/404"), server.asked("/always")) == (1, 3)


def test_waiting_rows_hold_up_no_other(server):
    server.script = {"/500": status(500), "/": body()}
    rows = rows_of(server.url("/500"), server.url("/500"), *[server.url("/")] * 6)
    order = list(download(rows, config(connections=2, retries=1, backoff_s=0.5)))
    assert [row["reason"] for row in order] == [None] * 6 + ["http_5xx"] * 2


def test_names_and_ports_that_lead_nowhere():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert reason(f"http://127.0.0.1:{closed.getsockname()[1]}/") == "connection"
    assert reason("http://no-such-name.invalid/") == "dns"
    assert reason(f"http://{'a' * 64}.invalid/") == "dns"


def fetching_threads():
    return [t for t in threading.enumerate() if t.name == "download"]


def test_the_thread_ends_with_its_generator(server):
    server.script = {"/": body(), "/never": raw(then_wait=True)}
    rows = rows_of(server.url("/"), *[server.url("/never")] * 3)
    generator = download(rows, config())
    assert next(generator)["data"] == b"image"
    assert fetching_threads()
    generator.close()
    assert not fetching_threads()

    def consume():
        for _ in download(rows, config()):
            raise KeyError("consumer")

    with pytest.raises(KeyError, match="consumer"):
        consume()
    assert not fetching_threads()


def test_errors_of_the_source_and_of_the_thread_reach_the_consumer(server):
    def source():
        yield from rows_of(server.url("/"))
        raise OSError("source")

    with pytest.raises(OSError, match="source"):
        list(download(source(), config()))
    with pytest.raises(KeyError, match="url"):
        list(download([{"reason": None}], config()))
    assert not fetching_threads()


def test_little_is_fetched_ahead_of_a_consumer_that_waits(server):
    server.script["/"] = body()
    read = []

    def source():
        for row in itertools.cycle(rows_of(server.url("/"))):
            read.append(row)
            yield row

    generator = download(source(), config(connections=4, connections_per_host=4))
    next(generator)
    asked = -1
    while asked != len(server.requests):
        asked = len(server.requests)
        time.sleep(0.3)
    assert asked <= 1 + 2 * 4
    assert len(read) <= 1 + 4 * 4
    assert len([next(generator) for _ in range(50)]) == 50
    generator.close()
