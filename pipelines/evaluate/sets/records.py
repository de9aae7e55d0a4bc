"""Reads a list's records whatever it is written in: CSV, TSV, JSON Lines, JSON or Parquet.
Below the sets that are lists of images and captions; every record comes with its place in words."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from caft.errors import DataError
from pipelines.data.sources import paths
from pipelines.data.sources.json_arrays import list_entries
from pipelines.data.sources.parquet import BATCH_ROWS, open_parquet
from pipelines.evaluate.sets.base import broken, items, json_lines, parse_json, read_text

Record = tuple[str, Any]  # its place, such as `list.csv: row 3`, and what it holds
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".jsonlines", ".jsonline", ".ndjson")
KINDS = (*DELIMITERS, *LINES, ".json", ".parquet")
MAX_CELL = 16 * 2**20
NAMED = 10  # keys of a record that a message lists


def read_records(path: str, key: str = "", wanted: Iterable[str] = ()) -> Iterator[Record]:
    """The records of a list in its order, counted from 1.

    Args:
        path: of a kind that its name ends with; a compression's ending may follow.
        key: where in a JSON object its list is, dotted. Empty: the one list of objects it has.
        wanted: fields that are read, dotted; of Parquet no other column is.

    Raises:
        DataError: no such file, another kind, or a file that is broken.
    """
    kind = paths.suffix(path)
    if kind in DELIMITERS:
        return _delimited(path, DELIMITERS[kind])
    if kind in LINES:
        return json_lines(path)
    if kind == ".parquet":
        return _parquet(path, set(wanted))
    if kind == ".json":
        return _json(path, key)
    raise DataError(f"{path}: no list of a kind that is known: {', '.join(KINDS)}")


def values_at(where: str, record: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every value of a field, and its place.

    Args:
        name: a key, or a path of keys with dots between them. On the way, a number takes one
            entry of a list, counted from 0, and any other key is taken of each entry.

    Raises:
        DataError: a key is not there.
    """
    if isinstance(record, Mapping):
        if name in record:
            yield where, record[name]
            return
        key, _, rest = name.partition(".")
        if not rest or key not in record:
            raise broken(where, f"no '{key}', there are {', '.join(_keys(record)) or 'no keys'}")
        yield from values_at(f"{where}: {key}", record[key], rest)
    elif isinstance(record, list):
        key, _, rest = name.partition(".")
        if not key.isdigit():
            for inner, entry in items(where, record):
                yield from values_at(inner, entry, name)
        elif int(key) >= len(record):
            raise broken(where, f"no entry {key} in a list of {len(record)}")
        elif rest:
            yield from values_at(f"{where}: entry {key}", record[int(key)], rest)
        else:
            yield f"{where}: entry {key}", record[int(key)]
    else:
        raise broken(where, f"an object with '{name}' is due, got {type(record).__name__}")


def _keys(record: Mapping[Any, Any]) -> list[str]:
    names = [str(name) for name in record]
    return names if len(names) <= NAMED else [*names[:NAMED], "..."]


def _delimited(path: str, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(MAX_CELL)
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    number = 0
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            place = f"row {number + 1}, line {rows.line_num}" if names else "header"
            raise broken(f"{path}: {place}", f"broken quotes or cells ({error})") from None
        if cells is None:
            return
        if not cells:
            continue
        if not names:
            names = cells
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise broken(path, f"two columns are named '{twice}'")
            continue
        number += 1
        where = f"{path}: row {number}"
        if len(cells) != len(names):
            raise broken(where, f"{len(cells)} cells, the header names {len(names)} columns")
        yield where, dict(zip(names, cells, strict=True))


def _parquet(path: str, wanted: set[str]) -> Iterator[Record]:
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        columns = [name if name in names else name.partition(".")[0] for name in wanted]
        if lacking := [name for name in columns if name not in names]:
            raise broken(path, f"no '{lacking[0]}', there are {', '.join(names)}")
        batches = file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns)))
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{path}: row {number}", row


def _json(path: str, key: str) -> Iterator[Record]:
    if paths.head(path).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        with paths.open_stream(path) as stream:
            for number, entry in list_entries(stream, path):
                yield f"{path}: entry {number}", entry
        return
    content = parse_json(path, read_text(path))
    if key:
        found = list(values_at(path, content, key))
        place, records = found[0] if len(found) == 1 else (f"{path}: {key}", found)
    else:
        place, records = _only_list(path, content)
    if not isinstance(records, list):
        raise broken(place, f"a list is due, got {type(records).__name__}")
    for number, entry in enumerate(records, 1):
        yield f"{place}: entry {number}", entry


def _only_list(path: str, content: Any) -> tuple[str, Any]:
    if not isinstance(content, Mapping):
        return path, content
    lists = [
        name
        for name, value in content.items()
        if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value)
    ]
    if len(lists) != 1:
        what = f"lists under {', '.join(lists)}" if lists else "no list of objects under any key"
        raise broken(path, f"a list is due, got an object with {what}; name one in 'records'")
    return f"{path}: {lists[0]}", content[lists[0]]
