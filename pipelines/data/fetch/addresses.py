"""Which URLs may be requested and which addresses may be connected to.
Every request of the downloader, redirects too, passes both checks before a byte is sent."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urlsplit

IPv4 = ipaddress.IPv4Address
IPv6 = ipaddress.IPv6Address

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # the last 32 bits are the IPv4 address behind it
REFUSED_NETWORKS = (
    ipaddress.ip_network("168.63.129.16/32"),  # a cloud's own service, on a public address
    ipaddress.ip_network("192.88.99.0/24"),  # relays into 6to4, given up
    ipaddress.ip_network("3fff::/20"),  # documentation
)

HOST = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,252}")
NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
SPACE_AND_CONTROLS = "".join(map(chr, range(0x21)))
LEFT_AS_IS = "%/:=&~+!$,;'@()*[]|^"  # by browsers too, escapes included


class Target(NamedTuple):
    """What one request asks for."""

    url: str  # plain ASCII, without credentials and fragment
    host: str  # lower case, no trailing dot, no brackets
    port: int


def parse_target(text: object) -> Target:
    """Read a URL as browsers do, and write it so that no other reader can take it differently.

    Raises:
        ValueError: not an http(s) URL with a host.
    """
    if not isinstance(text, str):
        raise ValueError("not a text")
    text = re.sub(r"[\t\r\n]", "", text.strip(SPACE_AND_CONTROLS))
    before_query = re.match(r"[^?#]*", text)[0]  # type: ignore[index]
    parts = urlsplit(before_query.replace("\\", "/") + text[len(before_query) :])
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"scheme {parts.scheme!r} is neither http nor https")
    host = normal_host(parts.hostname or "")
    place = f"[{host}]" if ":" in host else host
    port = parts.port
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    elif port == 0:
        raise ValueError("port 0")
    else:
        place += f":{port}"
    url = f"{parts.scheme}://{place}{_quoted(parts.path) or '/'}"
    if parts.query:
        url += f"?{_quoted(parts.query, '?')}"
    return Target(url, host, port)


def normal_host(host: str) -> str:
    """The one form of a host's name that is compared and connected to.

    Raises:
        ValueError: no host can have this name.
    """
    if ":" in host:
        address = IPv6(host)
        if address.scope_id:
            raise ValueError(f"host {host!r} names an interface of this machine")
        return str(address)
    if len(host) <= 253 and not host.isascii():
        host = host.encode("idna").decode()
    host = host.lower().removesuffix(".")
    if not HOST.fullmatch(host):
        raise ValueError(f"no host can be named {host[:80]!r}")
    return host


def needs_lookup(host: str) -> bool:
    """Whether a host is a name that is asked for in the network: numbers in any notation and
    names of this machine are not."""
    last = host.rpartition(".")[2]
    return not (":" in host or last == "localhost" or NUMBER.fullmatch(last))


@lru_cache(maxsize=2**16)
def is_public(address: str) -> bool:
    """Whether a numeric address is a single machine of the open internet: not private, loopback,
    link-local, multicast or reserved, also not where it is embedded in an IPv6 address."""
    try:
        return _is_public(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return False


def _is_public(address: IPv4 | IPv6) -> bool:
    if any(address in network for network in REFUSED_NETWORKS):
        return False
    if isinstance(address, IPv4):
        return address.is_global and not address.is_multicast
    if address.ipv4_mapped is not None:
        return _is_public(address.ipv4_mapped)
    if address in NAT64:
        return _is_public(IPv4(int(address) % 2**32))
    if address.sixtofour is not None and not _is_public(address.sixtofour):
        return False
    return address in GLOBAL_UNICAST and address.is_global


def _quoted(text: str, more_left: str = "") -> str:
    return quote(text, safe=LEFT_AS_IS + more_left, errors="replace")
