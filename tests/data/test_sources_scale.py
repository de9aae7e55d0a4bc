"""Large sources: memory that does not grow with them, and samples from all over them."""

import json
import subprocess
import sys
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources_support import image_bytes, read_rows, source, tar_bytes, write

from pipelines.data.sources import parse_rows, read_tables, sample_rows

COUNT_ROWS = """
import resource, sys
from pipelines.data.config import SourceConfig
from pipelines.data.sources import read_tables
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = SourceConfig(name="list", path=sys.argv[1])
rows = sum(table.num_rows for table in read_tables(source))
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "json"])
def test_memory_stays_far_below_a_lists_size(tmp_path, ending):
    path = tmp_path / f"list.{ending}"
    caption = "A dog runs over the grass, and another one follows it. " * 30
    rows = 180_000 if ending in ("csv", "parquet") else 90_000
    if ending == "parquet":
        # One row group whose pages do not compress away.
        table = pa.table(
            {
                "url": [f"http://a/{n}" for n in range(rows)],
                "text": [f"{n} {caption}" for n in range(rows)],
            }
        )
        pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=rows)
    else:
        with open(path, "w", encoding="utf-8") as stream:
            if ending == "csv":
                stream.write("url,text\n")
                stream.writelines(f'http://a/{n},"{caption}"\n' for n in range(rows))
            elif ending == "jsonl":
                stream.writelines(
                    f'{{"url": "http://a/{n}", "text": "{caption}"}}\n' for n in range(rows)
                )
            else:
                turn = json.dumps([{"from": "gpt", "value": caption}])
                entries = (f'{{"image": "{n}.jpg", "conversations": {turn}}}' for n in range(rows))
                stream.write(f"[{next(entries)}")
                stream.writelines(f",\n{entry}" for entry in entries)
                stream.write("]")
    size = path.stat().st_size
    assert size > 140e6
    done = subprocess.run(
        [sys.executable, "-c", COUNT_ROWS, path], capture_output=True, text=True, check=True
    )
    counted, grown_mib = map(int, done.stdout.split())
    assert counted == rows
    assert grown_mib < 256


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.gz"])
def test_a_sample_comes_from_all_over_a_list(tmp_path, ending):
    count = 120_000
    path = tmp_path / f"list.{ending}"
    noise = Random(0).randbytes(count * 120).hex()
    texts = [
        f"Dog {n}, a cat.\nIt sits. " * (n % 5) + noise[n * 240 : n * 240 + 240]
        for n in range(count)
    ]
    urls = [f"http://a/{n}" for n in range(count)]
    if ending == "parquet":
        pq.write_table(pa.table({"text": texts, "url": urls}), path, row_group_size=1000)
    else:
        mark = "\t" if ending == "tsv" else ","
        if "jsonl" in ending:
            rows = [json.dumps({"text": t, "url": u}) for t, u in zip(texts, urls, strict=True)]
        else:
            rows = [f"text{mark}url"]
            rows += [f'"{t}"{mark}{u}' for t, u in zip(texts, urls, strict=True)]
        data = "\n".join(rows).encode()
        write(path, pa.Codec("gzip").compress(data, asbytes=True) if "gz" in ending else data)
    rows, total = sample_rows(source(path), 400, seed=1)
    assert 300 <= len(rows) <= 400
    assert total == pytest.approx(count, rel=0.15)
    numbers = [int(row["url"].removeprefix("http://a/")) for row in rows]
    assert all(row["reason"] is None for row in rows)
    assert [row["texts"][0]["texts"][0] for row in rows] == [texts[n].strip() for n in numbers]
    if "gz" not in ending:
        assert min(numbers) < count / 4
        assert max(numbers) > count * 3 / 4
    again, _ = sample_rows(source(path), 400, seed=1)
    assert again == rows


def test_a_sample_of_images(tmp_path):
    for tar in range(4):
        members = [
            (f"{n}.{ending}", image_bytes(n, 100) if ending == "png" else b"A dog.")
            for n in range(20)
            for ending in ("png", "txt")
        ]
        write(tmp_path / f"tars/{tar}.tar", tar_bytes(members))
    rows, total = sample_rows(source(tmp_path / "tars"), 20, seed=0)
    assert len({row["url"] for row in rows}) == 20
    assert all(row["data"] for row in rows)
    assert total == pytest.approx(80, rel=0.2)
    for n in range(30):
        write(tmp_path / f"images/{n}.png", image_bytes(n))
    rows, total = sample_rows(source(tmp_path / "images"), 10, seed=0)
    assert (len(rows), total) == (10, 30)


def test_rows_of_the_plan_survive_parquet(tmp_path):
    path = write(tmp_path / "list.csv", "url,text,n\nhttp://a/1,\"['A.', 'B.']\",3\nbad,,,\n,x,1\n")
    config = source(path)
    table = pa.concat_tables(read_tables(config, ["n"]))
    pq.write_table(table, tmp_path / "plan.parquet")
    assert parse_rows(pq.read_table(tmp_path / "plan.parquet"), config) == read_rows(config, ["n"])
    assert parse_rows(table.slice(1), config) == read_rows(config, ["n"])[1:]
