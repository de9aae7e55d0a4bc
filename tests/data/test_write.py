"""Row groups are bounded in rows and in bytes, however rows come to the file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data import write
from pipelines.data.write import ParquetSink, group_ends

SCHEMA = pa.schema([("key", pa.string()), ("image", pa.binary())])
SIZES = [10, 10, 900, 900, 300, 10, 2_000, 10, 10, 10, 10, 10, 0]
DUE = [3, 1, 2, 1, 4, 2]


def rows():
    return [{"key": str(n), "image": bytes(size)} for n, size in enumerate(SIZES)]


@pytest.mark.parametrize("pieces", [None, 1, 3, 13])
def test_a_group_ends_at_its_rows_or_its_bytes(tmp_path, monkeypatch, pieces):
    monkeypatch.setattr(write, "MOST_GROUP_BYTES", 1_000)
    path = str(tmp_path / "part.parquet")
    with ParquetSink(path, SCHEMA, 4) as sink:
        if pieces is None:
            for row in rows():
                sink.add(row)
        else:
            table = pa.Table.from_pylist(rows(), SCHEMA)
            for start in range(0, len(table), pieces):
                sink.extend(table.slice(start, pieces))
    assert sink.entry["rows"] == len(SIZES)
    assert pq.read_table(path).to_pylist() == rows()
    assert write.group_rows(path) == DUE


def test_large_images_share_a_group_with_few():
    ends = group_ends(np.full(150, 17_000_000), 128)
    assert max(np.diff([0, *ends])) == 7
    assert ends[-1] == 150
    assert group_ends(np.empty(0, np.int64), 128) == []
