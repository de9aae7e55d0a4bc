"""Every kind of damage to a finished dataset is found, named, and told by the exit code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.__main__ import main
from pipelines.data.write import ParquetSink


@pytest.fixture
def copy(dataset_folder, tmp_path) -> Path:
    shutil.copytree(dataset_folder, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def verified(ray_cluster, capsys):
    """(exit code, what is wrong) of `verify PATH`."""

    def call(path) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = main(["verify", str(path)])
        printed = capsys.readouterr()
        lines = [
            line for line in printed.err.splitlines() if line.startswith((str(path), "man", "key"))
        ]
        said = f"{len(lines)} problems" if lines else "whole"
        assert printed.out.strip().endswith(f"{path}: {said}")
        return code, lines

    return call


def rewrite(copy: Path, name: str, change) -> None:
    """Change a file's rows, and have the manifest say what was written."""
    manifest = json.loads((copy / "manifest.json").read_text())
    table = pq.read_table(copy / name)
    rows = table.to_pylist()
    change(rows)
    with ParquetSink(str(copy / name), table.schema, 16) as sink:
        sink.extend(pa.Table.from_pylist(rows, table.schema))
    for entry in [*manifest["files"], *manifest["rejects"]]:
        if entry["name"] == name:
            entry.update(sink.entry)
    (copy / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_dataset(dataset_folder, verified):
    assert verified(dataset_folder) == (0, [])


def test_a_flipped_byte_of_an_image(copy, verified):
    part = copy / "part-00001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    code, problems = verified(copy)
    assert code == 1
    assert any(f"{part}: its checksum is not the manifest's" in line for line in problems)


def test_a_part_cut_short(copy, verified):
    part = copy / "part-00002.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    code, problems = verified(copy)
    assert code == 1
    assert any(f"{part}: cannot be read" in line for line in problems)


@pytest.mark.parametrize("name", ["part-00001.parquet", "rejects/part-00001.parquet"])
def test_a_deleted_file(copy, verified, name):
    (copy / name).unlink()
    code, problems = verified(copy)
    assert code == 1
    assert f"{copy}/{name}: no such file" in problems


@pytest.mark.parametrize("name", ["part-00099.parquet", "rejects/part-00099.parquet"])
def test_a_file_that_nobody_listed(copy, verified, name):
    shutil.copy(copy / "rejects/part-00001.parquet", copy / name)
    assert verified(copy) == (1, [f"{copy}/{name}: not in manifest.json"])


def test_wrong_counts(copy, verified):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["counts"]["kept"] += 1
    manifest["counts"]["rejected"]["timeout"] += 1
    manifest["sources"]["scenes_train"]["kept"] -= 1
    manifest["files"][0]["rows"] += 1
    manifest["rejects"][0]["reasons"] = {"timeout": 1}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    code, problems = verified(copy)
    assert code == 1
    text = "\n".join(problems)
    assert "manifest.json: counts.kept is 197, the files hold 196" in text
    assert "manifest.json: counts.rejected is" in text
    assert "manifest.json: sources.scenes_train.kept is 95, the files hold 96" in text
    assert "part-00000.parquet: 96 rows, the manifest says 97" in text
    assert "rejects/part-00001.parquet: its reasons are not the manifest's" in text


def test_a_key_that_is_there_twice(copy, verified):
    def double(rows):
        rows[3] |= {"key": rows[2]["key"], "url": rows[2]["url"]}

    rewrite(copy, "part-00000.parquet", double)
    key = pq.read_table(copy / "part-00000.parquet")["key"][2].as_py()
    assert verified(copy) == (1, [f"key {key}: in two rows"])


def test_a_reject_with_an_unknown_reason(copy, verified):
    rewrite(copy, "rejects/part-00001.parquet", lambda rows: rows[0].update(reason="bad_luck"))
    code, problems = verified(copy)
    assert code == 1
    assert any("rejects/part-00001.parquet: unknown reason 'bad_luck'" in p for p in problems)


def test_rows_that_contradict_themselves(copy, verified):
    def change(rows):
        rows[0]["width"] += 1
        rows[1]["image"] = b"no image"
        rows[2]["url"] += "?"
        rows[3]["captions"] = []

    rewrite(copy, "part-00003.parquet", change)
    code, problems = verified(copy)
    assert code == 1
    said = [line.split(": ", 2)[-1] for line in problems]
    assert len(problems) == 4
    assert all(f"{copy}/part-00003.parquet: key " in line for line in problems)
    assert said[2:] == ["is not that of its URL", "no sentence"]
    assert "its image is not" in said[0]
    assert "its image is not" in said[1]


def test_columns_of_another_version(copy, verified):
    table = pq.read_table(copy / "part-00000.parquet").drop_columns(["phash"])
    pq.write_table(table, copy / "part-00000.parquet")
    code, problems = verified(copy)
    assert code == 1
    assert any("its columns are not those of this version" in line for line in problems)


def test_no_dataset_at_all(tmp_path):
    command = [sys.executable, "-m", "pipelines.data", "verify", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "no manifest.json" in ended.stderr
