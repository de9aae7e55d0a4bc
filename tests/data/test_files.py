"""Candidates to parts, without a cluster: what changed on the disk in between is found."""

from pathlib import Path
from typing import Any

import pytest

from caft.errors import DataError
from pipelines import storage
from pipelines.data.chunk import CANDIDATE_REJECT_SCHEMA, CANDIDATE_SCHEMA
from pipelines.data.config import DataConfig, SourceConfig
from pipelines.data.dedup.duplicates import DROP_SCHEMA, drops_path
from pipelines.data.files import write_files
from pipelines.data.paths import Chunk, Layout
from pipelines.data.write import ParquetSink, write_table


def write_chunk(layout: Layout) -> None:
    """A chunk of one candidate and one reject, as it leaves them."""
    entries: dict[str, Any] = {}
    for name, path, schema, row in (
        ("kept", layout.candidate(0), CANDIDATE_SCHEMA, {"key": "a", "image": b"x" * 900}),
        ("rejects", layout.candidate_rejects(0), CANDIDATE_REJECT_SCHEMA, {"reason": "timeout"}),
    ):
        with ParquetSink(path, schema, 10) as sink:
            sink.add(row | {"url": "http://host/a", "place": len(entries)})
        entries[name] = sink.entry
    storage.write_json(layout.receipt("chunk", 0), entries)
    write_table(drops_path(layout), DROP_SCHEMA.empty_table())


@pytest.mark.parametrize("name", [None, "candidate-00000.parquet", "rejects-00000.parquet"])
def test_a_bit_that_flips_between_chunk_and_part_is_found(name, tmp_path):
    layout = Layout(str(tmp_path / "set"))
    source = SourceConfig(name="a", path="/a.csv")
    config = DataConfig(output=layout.output, sources=(source,))
    write_chunk(layout)
    chunk = Chunk(0, 0, "plan/a.parquet", 2)
    if name is None:
        assert write_files(0, [chunk], config, layout)["part"]["rows"] == 1
        return
    file = Path(layout.work, name)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}: has changed since it was written"):
        write_files(0, [chunk], config, layout)


def test_the_run_of_a_stage_of_an_earlier_version_that_was_killed_is_known_to_the_next(tmp_path):
    layout = Layout(str(tmp_path / "set"))
    assert layout.tracked_run() is None
    storage.write_json(f"{layout.work}/run.json", {"run_id": "abc"})
    assert Layout(layout.output).tracked_run() == "abc"
    assert Layout(layout.output, generation=1).tracked_run() is None
