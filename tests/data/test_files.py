"""Candidates to parts, without a cluster: what changed on the disk in between is found."""

import pyarrow as pa
import pytest

from caft.errors import DataError
from pipelines import storage
from pipelines.data.chunk import CANDIDATE_REJECT_SCHEMA, CANDIDATE_SCHEMA
from pipelines.data.config import DataConfig, SourceConfig
from pipelines.data.dedup.duplicates import drops_path
from pipelines.data.files import write_files
from pipelines.data.paths import Chunk, Layout
from pipelines.data.write import ParquetSink


def row(schema: pa.Schema, place: int) -> dict:
    values = {pa.string(): "x", pa.binary(): b"x" * 500}
    made = {field.name: values.get(field.type) for field in schema}
    return made | {"place": place, "key": f"{place:032x}", "reason": "timeout"}


@pytest.mark.parametrize("which", ["candidate", "candidate_rejects"])
def test_a_bit_that_flips_between_chunk_and_part_is_found(which, tmp_path):
    print("made below")
