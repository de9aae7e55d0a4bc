"""Repairs JPEG files that hold a complete picture and bytes that are no part of it.
prepare.py asks for it where a file does not decode cleanly, or is larger than a picture."""

from __future__ import annotations

import re

START = b"\xff\xd8\xff"
END = b"\xff\xd9"
# A picture may come behind a blank line or a warning of the server's script.
MOST_JUNK_BYTES = 512
# These files hold a JPEG that is a preview or a cover, not the picture.
CONTAINERS = (b"%PDF", b"ID3", b"8BPS", b"PK\x03\x04", b"II", b"MM", b"FORM", b"RIFF", b"\x89PNG")
MARKER = re.compile(rb"\xff+[\x01-\xfe]")
AFTER_SCAN = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # restarts belong to the scan
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
SCAN = 0xDA
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
KEPT_APPS = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
COMMENT, APPS = 0xFE, range(0xE0, 0xF0)
COEFFICIENTS = 64


def junk_before(data: bytes) -> int:
    """Bytes before a JPEG picture that starts a little late; 0: none, or no such picture."""
    if data.startswith(CONTAINERS) or data[4:8] == b"ftyp":
        return 0
    return max(0, data.find(START, 0, MOST_JUNK_BYTES + len(START)))


def repaired(data: bytes) -> bytes | None:
    """The picture of a JPEG file alone: no comments, no metadata but colours, no bytes between
    segments or behind the end, and with an end marker.

    Returns:
        None if the file ends before all of its scans have begun.
    """
    pieces, missing = [START[:2]], None
    at = len(START) - 1
    while found := MARKER.search(data, at):
        at, code = found.end() - 2, data[found.end() - 1]
        if code == END[1]:
            break
        if code in WITHOUT_LENGTH:
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data) or end < at + 4:
            return None
        body = data[at + 4 : end]
        if code in FRAMES:
            missing = _coefficients(body)
        elif code == SCAN:
            after = AFTER_SCAN.search(data, end)
            end = after.start() if after else len(data)
            if missing is not None:
                missing -= _finished(body)
        if not _foreign(code, body):
            pieces.append(data[at:end])
        at = end
    if missing is None or missing:
        return None
    return b"".join([*pieces, END])


def _coefficients(frame: bytes) -> set[tuple[int, int]]:
    """Of every component all coefficients, which its scans must bring."""
    components = frame[6::3][: frame[5]] if len(frame) > 5 else b""
    return {(one, place) for one in components for place in range(COEFFICIENTS)}


def _finished(scan: bytes) -> set[tuple[int, int]]:
    """The coefficients that are exact once this scan is read."""
    if not scan or len(scan) < 4 + 2 * scan[0]:
        return set()
    first, last, bits = scan[-3:]
    if bits & 15:  # some of their bits come in a later scan
        return set()
    return {(one, place) for one in scan[1:-3:2] for place in range(first, last + 1)}


def _foreign(code: int, body: bytes) -> bool:
    kept = KEPT_APPS.get(code)
    return code == COMMENT or (code in APPS and (kept is None or not body.startswith(kept)))
