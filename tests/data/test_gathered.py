"""Small files as few larger ones: every row once and in order, what is there is not made again."""

import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.data.blocks import read_blocks, write_blocks
from pipelines.data.gathered import Gathered
from pipelines.data.write import write_table


@pytest.mark.parametrize("together", [3, 100])
def test_each_file_is_found_in_the_larger_ones(ray_cluster, tmp_path, together):
    place = str(tmp_path)
    files = tuple(f"{place}/index-{n}.parquet" for n in range(14))
    schema = pa.schema([("key", pa.string()), ("other", pa.int64())])
    for n, file in enumerate(files):
        rows = [{"key": f"{n}.{m}", "other": m} for m in range(n % 4)]
        write_table(file, pa.Table.from_pylist(rows, schema))
    gathered = Gathered(files, f"{place}/all", ("key",), together)
    assert gathered.make("gather", 2) == sum(n % 4 for n in range(14))
    for file in files:
        storage.delete_file(file)
    assert gathered.make("gather", 2) == sum(n % 4 for n in range(14))  # of what is there
    assert len(storage.list_files(place)) == -(-14 // together)
    found = {n: table.to_pydict() for n, table in gathered.tables()}
    assert found == {n: {"key": [f"{n}.{m}" for m in range(n % 4)]} for n in range(14)}


def test_blocks_of_several_files(place):
    schema = pa.schema([("n", pa.int64())])
    tables = [pa.table({"n": list(range(n))}, schema=schema) for n in (3, 0, 2)]
    paths = [f"{place}/{n}.blocks" for n in range(2)]
    for path in paths:
        write_blocks(path, tables)
    assert [read_blocks(paths, n, schema)["n"].to_pylist() for n in range(3)] == [
        [0, 1, 2, 0, 1, 2],
        [],
        [0, 1, 0, 1],
    ]
