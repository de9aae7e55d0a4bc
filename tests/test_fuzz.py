"""Files that strangers or a bad disk may leave, by the hundred, for each reader: no traceback, no
hang, no more than 1 GB, and no crash of the process."""

import csv
import io
import json
import pickle
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import caft

FUZZED = Path(__file__).parent / "fixtures" / "fuzzed.py"
CHANGED = 60  # files of each seed
ROWS = [{"url": f"http://host/{n}.jpg", "caption": f"Picture {n}. It is small."} for n in range(40)]


def table_bytes() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), stream)
    return stream.getvalue()


def csv_bytes() -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["url", "caption"])
    writer.writeheader()
    writer.writerows(ROWS)
    return stream.getvalue().encode()


def tar_bytes() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for n in range(6):
            for ending, data in (("jpg", b"\xff\xd8\xff" * 300), ("txt", b"A picture.")):
                member = tarfile.TarInfo(f"{n:03d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def torch_bytes() -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(3), "b": torch.ones(2, 2)}}, stream)
    return stream.getvalue()


def member_that_claims(size: int) -> bytes:
    """A tar whose only file says that it has `size` bytes, in base 256."""
    member = tarfile.TarInfo("a.jpg")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"x" * 512


NESTED = 200_000
JSON = json.dumps({"config": {"a": [1, 2.5, None, "x"]}, "files": [{"name": "part", "rows": 3}]})
MANIFEST = json.dumps(
    {"files": {"model.safetensors": {"sha256": "0" * 64, "bytes": 3}}, "step": 3, "caft": "0.1.0"}
)
RECEIPT = json.dumps({"input_rows": 3, "reasons": {"timeout": 1}, "kept": None, "rejects": None})
DEEP_JSON = [b"[" * NESTED, b'{"a":' * NESTED, b"[" * NESTED + b"]" * NESTED, b"9" * 100_000]
DEEP_JSON += [b"", b"null", b"[]", b"3", b'"x"', b"{}", b"\xff\xfe", b"\x00" * 100]

# Reader -> (ending, seeds, files made by hand)
CASES: dict[str, tuple[str, list[bytes], list[bytes]]] = {
    "lists-csv": ("csv", [csv_bytes()], [b"url,caption\n" + b'"' * 10**6, b"url," * 10**5]),
    "lists-jsonl": (
        "jsonl",
        ["\n".join(map(json.dumps, ROWS)).encode()],
        [b'{"url": ' + b"[" * NESTED + b"\n" + json.dumps(ROWS[0]).encode(), b"9" * 10**6],
    ),
    "lists-json": ("json", [json.dumps(ROWS).encode()], DEEP_JSON),
    "lists-parquet": ("parquet", [table_bytes()], [b"PAR1" + b"\xff" * 100 + b"PAR1"]),
    "tars": ("tar", [tar_bytes()], [member_that_claims(2**60), member_that_claims(2**33), b""]),
    "json": ("json", [JSON.encode()], DEEP_JSON),
    "yaml": (
        "yaml",
        [b"model: caft_b\nimage:\n  width: 3\n  levels: [1, 2]\n"],
        [
            b"a: " + b"[" * NESTED,
            b"- " * NESTED,
            b"a: &a [*a]",
            b"? " * NESTED,
            b"a: " + b"9" * 9999,
        ],
    ),
    "pickles": (
        "pt",
        [torch_bytes()],
        [b"\x80\x02" + b"(" * NESTED + b"t" * NESTED + b".", b"\x80\x04" + b"\x85" * NESTED + b"."],
    ),
    "references": (
        "p",
        [pickle.dumps(ROWS)],
        [
            b"\x80\x04]" + b"\x85" * NESTED + b".",
            b"\x80\x04" + b"]" * NESTED + b"a" * (NESTED - 1) + b".",
            b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b".",
            b"\x80\x04]r\xff\xff\xff\x7f.",
            b"\x80\x04})" + b"\x85" * NESTED + b"K\x01s.",
            b"\x80\x04}()" + b"\x85" * NESTED + b"K\x01u.",
            b"\x80\x04(" + b")" + b"\x85" * NESTED + b"K\x01d.",
        ],
    ),
    "manifests": ("json", [MANIFEST.encode()], DEEP_JSON),
    "datasets": ("json", [MANIFEST.encode(), JSON.encode()], DEEP_JSON),
    "receipts": ("json", [RECEIPT.encode()], DEEP_JSON),
}


def changed(data: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, or of another number."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 3, 20])):
        at = chance.randrange(max(1, len(changed)))
        kind = chance.randrange(5)
        if kind == 0 and changed:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[at : at + chance.choice([1, 8, 100])]
        elif kind == 2:
            changed[at:at] = changed[at : at + chance.choice([1, 8, 100])] * chance.choice([1, 50])
        elif kind == 3:
            changed[at:at] = chance.choice([b"\x00", b"\xff" * 8, b"[", b'"', b"\n", b"999999999"])
        else:
            del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("name", CASES)
def test_no_file_is_more_than_a_line(name, tmp_path):
    ending, seeds, by_hand = CASES[name]
    chance = random.Random(name)
    files = [*seeds, *by_hand]
    files += [changed(seed, chance) for seed in seeds for _ in range(CHANGED)]
    for number, data in enumerate(files):
        (tmp_path / f"{number:04d}.{ending}").write_bytes(data)
    done = subprocess.run(
        [sys.executable, FUZZED, name.partition("-")[0], tmp_path], capture_output=True, text=True,
        env={"PYTHONPATH": str(Path(caft.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
