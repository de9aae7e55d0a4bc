"""Every image of a tar is a row, however it is named or cut; hostile files cost a row or a file one
line, in bounded time and memory."""

import gzip
import io
import struct
import subprocess
import sys
import tarfile
from itertools import pairwise
from random import Random

import pytest
from sources_support import captions_of, image_bytes, source, tar_bytes, write

from caft.errors import DataError
from pipelines.data.sources import LeftOut, read_container
from pipelines.data.sources.check import check_source
from pipelines.data.sources.tar_members import DamagedTar


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["photo 1.0.jpg", "photo 1.0.txt", "photo 1.1.jpg", "photo 1.1.txt"], 2),
        (["s0.input.jpg", "s0.outputs.txt"], 1),
        (["0.jpg", "0.mask.png", "0.txt", "0.cls"], 1),
        (["0.jpg", "0.txt", "0.jpg", "0.txt"], 2),
        (["s.input.jpg", "s.edited.jpg", "s.txt"], 2),
        (["0.jpg", "0.short_caption.txt", "0.long_caption.txt"], 1),
        (["a/0.jpg", "a/0.txt", "a/._0.jpg", "__MACOSX/0.jpg", "README"], 1),
        (["0.JPG", "0.TXT"], 1),
        (["0.jpg", "0.caption"], 1),
    ],
)
def test_names_of_members(tmp_path, names, rows):
    texts = (b"A dog runs.", b"A cat sits.")
    members = [
        (name, image_bytes(n) if name.lower().endswith(("jpg", "png")) else texts[n // 2 % 2])
        for n, name in enumerate(names)
    ]
    path = write(tmp_path / "a.tar", tar_bytes(members))
    check_source(source(path))
    read = list(read_container(str(path), source(path)))
    assert len(read) == rows
    assert [row["reason"] for row in read] == [None] * rows
    assert all(captions_of(row) for row in read)
    assert len({row["key"] for row in read}) == rows


def test_a_tar_that_is_not_sorted_is_refused(tmp_path):
    members = [(f"{n}.jpg", image_bytes(n)) for n in range(300)]
    members += [(f"{n}.txt", b"A dog.") for n in range(300)]
    path = write(tmp_path / "a.tar", tar_bytes(members))
    with pytest.raises(DataError, match=r"members \.jpg, then \.txt: the tar is not sorted"):
        check_source(source(path))


def test_a_sample_without_a_known_text_says_what_it_has(tmp_path):
    members = [("x.input.jpg", image_bytes()), ("x.a.txt", b"a"), ("x.b.txt", b"b")]
    path = write(tmp_path / "a.tar", tar_bytes(members))
    with pytest.raises(DataError, match=r"beside its \.input\.jpg.*\.a\.txt, \.b\.txt"):
        check_source(source(path))


def header(name, size, kind=b"0"):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, min(size, 8**11 - 1)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size >= 8**11:
        block[124:136] = struct.pack(">BxxxQ", 0x80, size)
        block[148:156] = b"        "
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("headers", "line"),
    [
        ([header("1.jpg", 2**60)], "it ends early"),
        ([header("pax", 1_500_000_000, tarfile.XHDTYPE)], r"a header claims 1,500,000,000 bytes"),
        ([header("long", 1_500_000_000, tarfile.GNUTYPE_LONGNAME)], "a header claims"),
        ([b"\xff" * 512], "bad checksum|invalid header"),
        ([header("1.jpg", 10) + bytes(100)], "it ends early"),
    ],
)
def test_tars_that_claim_too_much(tmp_path, headers, line):
    good = tar_bytes([("0.png", image_bytes()), ("0.txt", b"A dog.")])
    good = good[: good.rindex(b"A dog.") + 512 - 6 + 6]
    good = good[: len(good) // 512 * 512]
    path = write(tmp_path / "a.tar", good + b"".join(headers))
    rows = []
    with pytest.raises(DamagedTar, match=rf"a\.tar: not a whole tar: ({line})"):
        rows += read_container(str(path), source(path))


def test_one_tar_that_is_cut_does_not_end_the_check(tmp_path):
    members = [[(f"{n}.png", image_bytes(n)), (f"{n}.txt", b"A dog.")] for n in range(9)]
    whole = tar_bytes([member for sample in members for member in sample])
    write(tmp_path / "0.tar", whole[: len(whole) // 2])
    write(tmp_path / "1.tar", whole)
    check_source(source(tmp_path))
    write(tmp_path / "1.tar", b"no tar at all" * 99)
    write(tmp_path / "0.tar", whole[:700])
    with pytest.raises(DataError, match=r"none of its first 2 rows.*bad_row 2 \(not a whole tar"):
        check_source(source(tmp_path))


LIMITED = """
import resource, sys, time
from pipelines.data.config import SourceConfig
from pipelines.data.sources import parse_rows, read_tables
from pipelines.data.sources.check import check_source
from caft.errors import CAFTError
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
for path in sys.argv[1:]:
    source = SourceConfig(name="x", path=path)
    started = time.monotonic()
    try:
        check_source(source)
        rows = [row for table in read_tables(source) for row in parse_rows(table, source)]
        print("rows", len(rows), path)
    except CAFTError as error:
        assert "\\n" not in str(error)
        print("refused", str(error)[:200])
    assert time.monotonic() - started < 60, path
"""
ROW = b'{"url": "http://a/1", "caption": '
HOSTILE = {
    "brackets.jsonl": lambda: ROW + b"[" * 100_000,
    "objects.json": lambda: b"[" + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]",
    "digits.jsonl": lambda: ROW + b"9" * 5000 + b"}",
    "line.csv": lambda: b"url,caption\nhttp://a/1,A dog.\n" + b"x" * 60_000_000,
    "quote.csv": lambda: b'url,caption\nhttp://a/1,A dog.\n"' + (b"x" * 99 + b"\n") * 200_000,
    "quotes.csv": lambda: b"url,caption\n" + b'http://a/1,"A dog.\n' * 20_000,
    "bomb.csv.gz": lambda: gzip.compress(b"url,caption\nhttp://a/1,A\n" + bytes(50_000_000), 1),
    "spelled.csv": lambda: b"url,caption\n" + b'http://a/1,"' + b"[" * 1_000_000 + b']"\n',
    "zeros.csv": lambda: bytes(10_000_000),
    "noise.csv": lambda: Random(0).randbytes(1_000_000),
    "noise.jsonl": lambda: Random(0).randbytes(1_000_000),
    "noise.json": lambda: b"[" + Random(0).randbytes(1_000_000),
    "noise.parquet": lambda: b"PAR1" + Random(0).randbytes(500_000) + b"PAR1",
}


def test_hostile_lists_end_in_one_line_or_rows(tmp_path):
    paths = [write(tmp_path / name, make()) for name, make in HOSTILE.items()]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(HOSTILE)


@pytest.mark.parametrize("seed", range(12))
def test_a_tar_that_is_cut_anywhere_gives_every_sample_once(tmp_path, seed):
    """Long names in headers of their own, folders, hidden files, joined tars, and any borders."""
    random = Random(seed)
    stream = io.BytesIO()
    for part in range(2):
        with tarfile.open(fileobj=stream, mode="w", format=random.choice([0, 1, 2])) as tar:
            for n in range(40):
                stem = f"{part}/{n:05d}" + random.choice(["", "x" * random.randint(60, 90)])
                if random.random() < 0.2:
                    info = tarfile.TarInfo(f"{part}/folder{n}")
                    info.type = tarfile.DIRTYPE
                    tar.addfile(info)
                for ending in random.sample(["png", "txt", "json", "cls"], 4):
                    data = {"png": image_bytes(n), "txt": b"A dog."}.get(ending, b"{}")
                    data += b" " * random.choice([0, 0, 3000]) if ending != "png" else b""
                    info = tarfile.TarInfo(f"{stem}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                if random.random() < 0.2:
                    tar.addfile(tarfile.TarInfo(f"{part}/.hidden{n}"))
    path = write(tmp_path / "a.tar", stream.getvalue())
    config, left_out = source(path), LeftOut()
    whole = [row["url"] for row in read_container(str(path), config, (), left_out)]
    assert len(whole) == len(set(whole)) == 80
    blocks = len(stream.getvalue()) // 512
    edges = sorted({512 * random.randrange(1, blocks) for _ in range(random.choice([1, 5, 60]))})
    found, hidden = [], LeftOut()
    for start, end in pairwise([0, *edges, 2**62]):
        rows = list(read_container(str(path), config, (), hidden, [start, end]))
        keys = read_container(str(path), config, (), None, [start, end], images=False)
        assert [row["url"] for row in keys] == [row["url"] for row in rows]
        assert all(row["reason"] is None and row["data"] for row in rows)
        found += [row["url"] for row in rows]
    assert found == whole
    assert hidden.rows == left_out.rows
