"""Answers of servers that forbid, cannot be trusted or make no sense."""

import datetime
import ssl

import pytest
from download_support import fetch, reason
from scripted_server import body, raw, serving, status

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def server():
    with serving() as server:
        yield server


def test_robots_rules_are_obeyed_before_the_body_comes(server):
    def tagged(*values):
        tags = b"".join(b"x-robots-tag: " + value + b"\r\n" for value in values)
        return HEAD + tags + b"Content-Length: 5\r\n\r\n"

    server.script = {
        "/noai": raw(tagged(b"noarchive, NoAI"), then_wait=True),
        "/ours": raw(tagged(b"other: noai", b"caft: noimageai"), then_wait=True),
        "/theirs": raw(tagged(b"other: noai") + b"image"),
        "/odd": raw(tagged(b"", b":::", b"\xff\xfe: noai") + b"image"),
        "/others": raw(tagged(b"other: noai, noindex", b"unavailable_after: x: y, all") + b"image"),
        "/dated": raw(tagged(b"unavailable_after: 25 Jun 2030 15:00:00 PST, noai")),
        "/named": raw(tagged(b"other: all, caft: noai"), then_wait=True),
        "/404": status(404, X_Robots_Tag="noindex"),
    }
    assert reason(server.url("/noai")) == "noai"
    assert reason(server.url("/ours"), user_agent_token="Caft") == "noai"
    assert reason(server.url("/404")) == "http_4xx"
    assert fetch(server.url("/theirs"))["data"] == b"image"
    assert fetch(server.url("/odd"))["data"] == b"image"
    assert fetch(server.url("/others"))["data"] == b"image"
    assert reason(server.url("/dated")) == reason(server.url("/named")) == "noai"
    server.script["/noai"] = raw(tagged(b"noai") + b"image")
    assert fetch(server.url("/noai"), respect_robots_tag=False)["data"] == b"image"
    assert "caft" in server.requests[0][2]["User-Agent"]


def test_certificates_are_verified(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    with serving(context) as server:
        server.script["/"] = body()
        row = fetch(server.url("/", scheme="https"), retries=2)
        assert row["reason"] == "tls"
        assert server.requests == []
    with serving() as server:
        assert reason(server.url("/", scheme="https")) in ("tls", "connection")


def self_signed(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "server.pem"
    file.write_bytes(private + certificate.public_bytes(pem))
    return file


HOSTILE = {
    "garbage": b"\x00\xff" * 500,
    "other protocol": b"220 mail ready\r\n" * 20,
    "no status": b"HTTP/1.1\r\n\r\n",
    "odd status": b"HTTP/1.1 2x0 OK\r\n\r\nx",
    "no colon": HEAD + b"nothing\r\n\r\nx",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nimage",
    "negative length": HEAD + b"Content-Length: -5\r\n\r\nimage",
    "huge length": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nimage",
    "bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "bad gzip": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nimage",
    "long line": HEAD + b"A: " + b"b" * 200_000 + b"\r\n\r\n",
    "many lines": HEAD + b"A: b\r\n" * 100_000,
    "binary header": HEAD + b"X-Robots-Tag: \xff\x00\xfe\r\n\r\n",
    "bad place": b"HTTP/1.1 302 Found\r\nLocation: http://[\xff\r\n\r\n",
    "bad retry": b"HTTP/1.1 503 Busy\r\nRetry-After: 9999-99-99\xff\r\nContent-Length: 0\r\n\r\n",
    "far retry": b"HTTP/1.1 429 Busy\r\nRetry-After: "
    + b"9" * 400
    + b"\r\nContent-Length: 0\r\n\r\n",
    "endless steps": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_nothing_an_answer_holds_escapes(server, answer):
    server.script["/"] = raw(answer)
    row = fetch(server.url("/"), timeout_s=2.0)
    assert isinstance(row.get("data"), bytes) or (row["reason"] and row["detail"])
