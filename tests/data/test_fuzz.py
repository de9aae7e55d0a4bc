"""Rows written are rows counted, through every reader, in random dialects, encodings and damage."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zlib
from dataclasses import dataclass, field
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted_server import body, serving
from sources_support import image_bytes, read_rows, source, write
from stage_support import picture, read, rejects_of, small_config

from pipelines.data.config import SourceConfig
from pipelines.data.dataset import open_dataset
from pipelines.data.sources import CONTAINERS, detect_kind, list_containers, read_container
from pipelines.data.sources import delimited as delimited_reader
from pipelines.data.sources import json_arrays as array_reader
from pipelines.data.sources import jsonl as lines_reader
from pipelines.data.sources.cells import cell_texts
from pipelines.data.stage import run
from pipelines.data.verify import verify

WORDS = ["dog", "Café", "über", "犬が", "«quote»", 'say "hi"', "it's", "5\" x 3'", "a,b", "c;d"]
WORDS += ["e|f", "tab\there", "back\\slash", "[x]", "&amp;", "#tag", "🐕", "http://b/x", "{a}"]
WORDS += ["'", '"', '""', "\\", '\\"', "'x', 'y'", "x.jpg", "\u200f", "url", "caption", "12", "-"]
BREAKS = ["\n", "\r\n", "\n\n", "\nhttps://t.co/1\n", "\n- "]
# The seeds of faults that this test has found are among these.
SEEDS = range(25)


@dataclass
class Made:
    """A source that was written.

    Attributes:
        rows: how many, whatever is wrong with some of them.
        cells: URL and caption cell of each, where nothing is wrong; else empty.
    """

    source: SourceConfig
    rows: int
    cells: list[tuple[str, object]] = field(default_factory=list)


def text(random, without="", breaks=True):
    parts = []
    for word in random.choices(WORDS, k=random.randint(0, 8)):
        parts.append("plain" if any(sign in word for sign in without) else word)
        if breaks and random.random() < 0.08:
            parts.append(random.choice(BREAKS))
    if random.random() < 0.02:
        parts.append("x " * random.randint(1000, 20_000))
    return " ".join(parts)


def packed(random, data):
    halves = lambda whole: b"".join(map(gzip.compress, (whole[:99], whole[99:])))  # noqa: E731
    return random.choice([bytes] * 5 + [gzip.compress, bz2.compress, lzma.compress, halves])(data)


def some(random, count):
    """A few places of which none is among the first, by which a list is judged."""
    return random.sample(range(5, count), random.randint(1, max(1, count // 50)))


def a_cell(random, quoting, mark, cell):
    if quoting == "none":
        return cell
    if quoting == "escaped":
        odd = any(sign in cell for sign in (mark, '"', "\n", "\r", "\\"))
        escaped = cell.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"' if odd or random.random() < 0.1 else cell
    stream = io.StringIO(newline="")
    style = csv.QUOTE_ALL if quoting == "all" else csv.QUOTE_MINIMAL
    csv.writer(stream, delimiter=mark, lineterminator="\r\n", quoting=style).writerow([cell, "x"])
    return stream.getvalue()[:-2].rpartition(mark)[0]


def delimited(random, folder, base):
    mark = random.choice(",\t;|")
    quoting = random.choice(["doubled", "all", "escaped", "none"])
    end = random.choice(["\n", "\n", "\r\n", "\r"])
    encoding = random.choice(["utf-8"] * 4 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
    encoding = random.choice([encoding] * 4 + ["gb18030"])
    is_damaged = encoding == "utf-8" and random.random() < 0.5
    names = ["caption", "url", *random.sample(["note", "id", "title"], random.randint(0, 3))]
    random.shuffle(names)
    breaks = quoting != "none" and end != "\r" and not is_damaged  # a broken row is one line
    count, cells = random.randint(20, 200), []
    rows = [[*names]] if len(names) > 2 or random.random() < 0.7 else []
    for n in range(count):
        row = {name: random.choice(["", str(n), "x"]) for name in names}
        row["url"] = f"{base}/{n}.jpg" + random.choice(["", "?a=b"])
        row["caption"] = text(random, f"{mark}\n\r" if quoting == "none" else "", breaks)
        cells.append((row["url"], row["caption"]))
        rows.append([row[name] for name in names])
    lines = [mark.join(a_cell(random, quoting, mark, cell) for cell in row) for row in rows]
    encoded = [line.encode(encoding if encoding == "gb18030" else "utf-8") for line in lines]
    for n in some(random, len(encoded)) if is_damaged else []:
        line = encoded[n]
        kinds = [b'"', b"\xe9", b"\0", b"\x07", b'""', mark.encode(), b"\xff\xfe", b"\\"]
        place = random.randint(0, len(line))
        encoded[n] = line[:place] + random.choice(kinds) + line[place:]
        if random.random() < 0.2:
            encoded[n] = line[: random.randint(1, len(line))]
    data = end.encode().join(encoded) + random.choice([end.encode(), b""])
    if encoding not in ("utf-8", "gb18030"):
        data = data.decode().encode(encoding)
    name = random.choice(["list.csv", "list.csv", "list.tsv", "list.txt", "list"])
    fields = {"encoding": encoding} if encoding == "gb18030" else {}
    made = source(write(folder / name, packed(random, data)), **fields)
    return Made(made, count, [] if is_damaged else cells)


def a_record(random, base, n):
    words = text(random)
    row = {"url": f"{base}/{n}.jpg"}
    row["caption"] = random.choice([words, words, [words], {"text": words}, [{"caption": words}]])
    if random.random() < 0.3:
        others = [None, 1, "x", [1], {"a": 1}, 1e300, True, float("nan")]
        row[random.choice(["extra", "score", "title"])] = random.choice(others)
    if random.random() < 0.05:
        row["pad"] = 'x]}[{\\"' * random.randint(1000, 9000)
    return row


def a_broken_record(random, line):
    return random.choice(
        [
            line.replace(b"http", b"\xe9http"),
            line.replace(b'"caption"', b"caption"),
            line.replace(b":", b"=", 1),
            line.replace(b"jpg", b"j\\ud800pg"),
            line.replace(b"jpg", b"j\x07pg"),
            line.replace(b'jpg"', b"jpg", 1),
            line.rstrip(b"}"),
            *(b"null", b"[1]", b'"x"', b"12", b"{}", b"NaN", b"tru", b"{'a': 1}", b'{"a": 1,}'),
            *(b'{"caption": "x"}', b'{"url": 5, "caption": "A"}', b"[" * 900 + b"]" * 900),
            b'{"url": {"a": 1}, "caption": "A"}',
            b'{"url": "http://a/x", "url": "http://a/y", "caption": "A dog."}',
        ]
    )


def json_lines(random, folder, base):
    count, is_damaged = random.randint(20, 200), random.random() < 0.5
    rows = [a_record(random, base, n) for n in range(count)]
    lines = [json.dumps(row, ensure_ascii=random.random() < 0.5).encode() for row in rows]
    for n in some(random, count) if is_damaged else []:
        line = random.choice([lines[n][: random.randint(1, len(lines[n]))], b"{" + lines[n]])
        lines[n] = random.choice([line, a_broken_record(random, lines[n])])
    end = random.choice([b"\n", b"\r\n", b"\n\n"])
    data = end.join(lines) + random.choice([end, b""])
    if not is_damaged:
        encodings = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-be"]
        data = data.decode().encode(random.choice(encodings))
    name = random.choice(["list.jsonl", "list.json", "list.ndjson", "list.jsonlines", "list"])
    made = source(write(folder / name, packed(random, data)))
    return Made(made, count, [] if is_damaged else [(r["url"], r["caption"]) for r in rows])


def json_array(random, folder, base):
    count, is_damaged = random.randint(20, 200), random.random() < 0.5
    rows = [a_record(random, base, n) for n in range(count)]
    lines = [json.dumps(row, indent=random.choice([None, 1, 4])).encode() for row in rows]
    for n in some(random, count - 1) if is_damaged else []:
        lines[n] = a_broken_record(random, lines[n])
    arrays = [lines[: count // 2], lines[count // 2 :]] if random.random() < 0.2 else [lines]
    data = b"".join(
        b"[" + random.choice([b",", b", ", b",\n", b"\n,\n"]).join(array) + b"]\n"
        for array in arrays
    )
    if len(arrays) == 1 and random.random() < 0.3:
        name = random.choice([b"annotations", b"data", b"images"])
        data = b'{"info": {"a": [1, {"b": "]"}]}, "' + name + b'": ' + data + b', "more": ["]"]}'
    data = random.choice([b"", b"\n \n", b"\xef\xbb\xbf"]) + data
    made = source(write(folder / random.choice(["list.json", "list.jsonl"]), packed(random, data)))
    return Made(made, count, [] if is_damaged else [(r["url"], r["caption"]) for r in rows])


def parquet(random, folder, base):
    count = random.randint(1, 200)
    texts = [text(random) for _ in range(count)]
    urls = [f"{base}/{n}.jpg" if random.random() < 0.98 else None for n in range(count)]
    shapes = {
        "string": lambda: pa.array(texts, random.choice([pa.large_string(), pa.string_view()])),
        "list": lambda: pa.array([[t] if t else None for t in texts], pa.list_(pa.string())),
        "nested": lambda: pa.array([[[t]] for t in texts]),
        "object": lambda: pa.array([{"text": t, "n": 1} for t in texts]),
        "dictionary": lambda: pa.array(texts).dictionary_encode(),
        "bytes": lambda: pa.array(
            [random.choice([b""] * 40 + [b"\xe9"]) + t.encode() for t in texts]
        ),
    }
    captions = shapes[random.choice(list(shapes))]()
    table = pa.table({"url": pa.array(urls, pa.string()), "caption": captions})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "list.parquet", row_group_size=random.randint(1, count))
    return Made(source(folder / "list.parquet"), count)


def embedded(random, folder, base):
    count = random.randint(2, 40)
    images = [image_bytes(zlib.crc32(f"{base}{n}".encode())) for n in range(count)]
    images = [random.choice([image] * 9 + [None, b"", b"x"]) for image in images]
    if random.random() < 0.5:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = pa.array([{"bytes": image, "path": "a.png"} for image in images], kind)
    table = pa.table({"image": images, "text": [text(random) for _ in range(count)]})
    if not pa.types.is_struct(table["image"].type):
        table = table.set_column(0, "image", table["image"].cast(pa.large_binary()))
    half = random.randint(1, count)
    folder.mkdir(parents=True, exist_ok=True)
    for n, part in enumerate([table.slice(0, half), table.slice(half)]):
        pq.write_table(part, folder / f"part-{n}.parquet", row_group_size=random.randint(1, count))
    return Made(source(folder), count)


def samples(random, base):
    """Names and bytes of images and of what is beside them, each image's together."""
    style = random.choice(["plain", "dots", "nested", "long"])
    for n in range(random.randint(5, 40)):
        stem = {
            "plain": f"{n:05d}",
            "dots": f"photo {n // 2}.{n % 2}",
            "nested": f"a.b/c/{n}",
            "long": "x" * (1 + 7 * n % 80) + f"/{n}",
        }[style]
        ending = random.choice(["jpg", "JPEG", "jfif", "png", "avif", "mpo", "heic", "webp"])
        image = picture(zlib.crc32(f"{base}{n}".encode()), 64, "PNG")
        yield [
            (f"{stem}.{ending}", random.choice([image] * 9 + [b"", image[: len(image) // 2]])),
            *[(f"{stem}.txt", text(random).encode())] * (random.random() < 0.9),
            *[(f"{stem}.json", random.choice([b'{"caption": "A dog."}', b"{", b"[]", b"\xe9"]))]
            * (random.random() < 0.3),
        ]


def tar(random, folder, base):
    members = list(samples(random, base))
    count = len(members)
    for sample in members:
        random.shuffle(sample)
    flat = [member for sample in members for member in sample]
    if random.random() < 0.3:
        half = random.randrange(count)  # appended to, so that names are there twice
        flat += [member for sample in members[:half] for member in sample]
        count += half
    stream, cut = io.BytesIO(), random.randint(0, len(flat))
    for part in [flat[:cut], flat[cut:]] if random.random() < 0.5 else [flat]:
        with tarfile.open(fileobj=stream, mode="w", format=random.choice([0, 1, 2])) as archive:
            for name, data in part:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    data = stream.getvalue()
    path = write(folder / "a.tar", gzip.compress(data) if random.random() < 0.3 else data)
    return Made(source(path), count)


def images(random, folder, base):
    found = list(samples(random, base))
    for sample in found:
        for name, data in sample:
            write(folder / name, data)
    return Made(source(folder), len(found))


FORMS = (delimited, json_lines, json_array, parquet, embedded, tar, images)


def rows_of(config):
    if detect_kind(config) in CONTAINERS:
        return [row for path in list_containers(config) for row in read_container(path, config)]
    return read_rows(config)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_row_that_is_written_is_read(tmp_path, monkeypatch, form, seed):
    random = Random(f"{form.__name__} {seed}")
    made = form(random, tmp_path / "source", "http://a")
    if random.random() < 0.7:  # borders of blocks anywhere
        monkeypatch.setattr(delimited_reader, "BLOCK_BYTES", random.choice([64, 300, 10_000]))
        monkeypatch.setattr(lines_reader, "BLOCK_BYTES", random.choice([64, 300, 10_000]))
        monkeypatch.setattr(array_reader, "READ_BYTES", random.choice([7, 64, 1000]))
    rows = rows_of(made.source)
    assert len(rows) == made.rows
    for (url, cell), row in zip(made.cells, rows, strict=False):
        assert row["url"] == url
        texts = [
            t for entry in row["texts"] if entry["source"] == "caption" for t in entry["texts"]
        ]
        assert texts == cell_texts(cell, set())


def test_rows_written_are_rows_counted_by_the_stage(ray_cluster, tmp_path):
    """Kept, rejected by reason, and merged where several have one URL, through every reader."""
    written, sources = {}, []
    with serving() as server:
        for n, form in enumerate(FORMS * 3):
            name = f"{n}-{form.__name__}"
            base = server.url(f"/{n}")
            made = form(Random(name), tmp_path / name, base)
            server.script |= {
                f"/{n}/{m}.jpg": body(picture(1000 * n + m)) for m in range(0, made.rows, 2)
            }
            written[name] = made.rows
            sources.append(made.source.model_dump(exclude_unset=True) | {"name": name})
        again = json.dumps({"url": server.url("/0/0.jpg"), "caption": "Once more."})
        write(tmp_path / "again.jsonl", f"{again}\n" * 7 + "{\n")
        written["again"] = 8
        sources.append({"name": "again", "path": str(tmp_path / "again.jsonl"), "max_bad_share": 1})
        config = small_config(tmp_path, sources, chunk_rows=50, chunk_mb=1)
        run(config)
    manifest = open_dataset(config.output).manifest
    for name, rows in written.items():
        counts = manifest["sources"][name]
        assert counts["kept"] + sum(counts["rejected"].values()) == rows, name
    counts = manifest["counts"]
    assert counts["rejected"]["merged_captions"] >= 6
    assert counts["input_rows"] == sum(written.values())
    kept = sum(
        len(read(f"{config.output}/{entry.name}", ["key"]))
        for entry in open_dataset(config.output).files
    )
    assert kept + len(rejects_of(config.output)) == sum(written.values())
    assert verify(config.output) == []
