"""Joins the captions of a list to the images of a source: its steps, their tasks, its counts.
Between the plan of the sources and the chunks; every step's files are kept until all are done."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from caft.errors import DataError
from pipelines import storage
from pipelines.data.config import SourceConfig
from pipelines.data.join.match import attach, captions_path, match
from pipelines.data.join.sides import gather_images, partitions_of, read_captions, scan
from pipelines.data.join.values import (
    JOINABLE,
    caption_list,
    caption_value,
    image_fields,
    image_value,
    joined_list,
    no_row,
)
from pipelines.data.paths import ROWS_PER_CHUNK, Chunk, Layout
from pipelines.data.sources import read_container, read_tables
from pipelines.data.sources.detect import source_files
from pipelines.data.sources.rows import set_texts
from pipelines.workers import cluster_cpus, run_tasks

GATHERED_CHUNKS = 100  # whose images' keys are written as one file


def join_captions(
    source: SourceConfig, number: int, chunks: Sequence[Chunk], layout: Layout
) -> tuple[list[Chunk], dict[str, Any]]:
    """The chunks of a source, with captions joined to their rows, and what became of the captions.

    A caption row whose image is there is `joined`, whatever becomes of the image; several rows of
    one image are merged. `rows` = `joined` + `without_image` + `rejected` by reason.

    Raises:
        DataError: a list that cannot be read, or that has no row for any image.
    """
    receipt = storage.join(layout.plan, f"joined-source-{number}.json")
    groups = even_groups(chunks, partitions := _partitions(source, layout, number))
    if not storage.exists(receipt):
        counts = _join(source, number, groups, layout, partitions)
        storage.write_json(receipt, counts)
    storage.delete_folder(_folder(layout, number))
    placed = []
    for group in groups:
        path = layout.relative(captions_path(layout, group[0]))
        placed += [replace(c, captions=path) if c.container else c for c in group]
    return placed, storage.read_json(receipt)


def set_joined(
    row: dict[str, Any], captions: dict[int, list[dict[str, Any]]], source: SourceConfig
) -> None:
    """Give a container's row the captions that are joined to it, by its place, or its reason."""
    if row["reason"] not in (None, *JOINABLE):
        return
    row |= {"reason": None, "detail": "", "texts": []}
    found = captions.get(row["place"])
    if found is None:
        value = image_value(row["url"], row["columns"], source)
        row |= no_row(value, source) | {"data": None}
    else:
        set_texts(row, [(cell["source"], cell["kind"], cell["text"]) for cell in found])


def join_sample(rows: Sequence[dict[str, Any]], source: SourceConfig) -> None:
    """Give rows of a sample the captions that a join would; reads the whole list for it."""
    values = [image_value(row["url"], row["columns"], source) for row in rows]
    wanted = frozenset(filter(None, values))
    found: dict[str, list[dict[str, Any]]] = {}
    for table in read_tables(caption_list(source)):
        for place, url in enumerate(table["url"].to_pylist()):
            value = caption_value(url, source)
            if value in wanted:
                cells = table["captions"][place].as_py()
                have = found.setdefault(value, [])
                have += [cell for cell in cells if cell not in have]
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        captions = {place: found[value]} if value in found else {}
        row["place"] = place
        set_joined(row, captions, source)


def even_groups(chunks: Sequence[Chunk], count: int) -> list[list[Chunk]]:
    """Runs of chunks, as even as may be, of which there are `count` at most."""
    edges = np.linspace(0, len(chunks), min(count, len(chunks)) + 1).astype(int)
    return [list(chunks[a:b]) for a, b in itertools.pairwise(edges)]


def _join(
    source: SourceConfig,
    number: int,
    groups: Sequence[Sequence[Chunk]],
    layout: Layout,
    partitions: int,
) -> dict[str, Any]:
    folder, tasks = _folder(layout, number), cluster_cpus()
    chunks = [chunk for group in groups for chunk in group]
    files = range(len(source_files(caption_list(source))))

    def read(n: int) -> dict[str, Any]:
        return read_captions(source, n, folder, partitions)

    read_files = dict(run_tasks("captions", read, files, tasks))
    runs = [path for n in files for path in read_files[n]["runs"]]

    def scan_one(place: int) -> None:
        scan(chunks[place], source, folder)

    containers = [place for place, chunk in enumerate(chunks) if chunk.container]
    _run("scan", scan_one, containers, tasks)
    starts = range(0, len(chunks), GATHERED_CHUNKS)

    def gather(start: int) -> dict[str, Any]:
        mine = chunks[start : start + GATHERED_CHUNKS]
        return gather_images(mine, source, layout, folder, start, partitions)

    gathered = dict(run_tasks("gather_images", gather, starts, tasks))
    images = [gathered[start]["path"] for start in starts]
    firsts = [group[0].number * ROWS_PER_CHUNK for group in groups]

    def join(n: int) -> dict[str, int]:
        return match(source, runs, images, n, firsts, folder)

    total: Counter[str] = Counter()
    for _, counts in run_tasks("join", join, range(partitions), tasks):
        total.update(counts)
    if not total["images"]:
        raise DataError(_no_match(source, chunks, list(read_files.values()), gathered.values()))

    def bring(n: int) -> None:
        attach(groups[n], source, layout, folder, n, partitions)

    _run("attach", bring, range(len(groups)), tasks)
    rejected: Counter[str] = Counter()
    left_out: dict[str, Any] = {}
    for result in read_files.values():
        rejected.update(result["rejected"])
        left_out |= result["left_out"]
    return {
        "rows": sum(result["rows"] for result in read_files.values()),
        "joined": total["joined"],
        "without_image": total["without_image"],
        "rejected": dict(sorted(rejected.items())),
        "images": sum(result["images"] for result in gathered.values()),
        "images_joined": total["images"],
        "left_out": left_out,
    }


def _no_match(
    source: SourceConfig,
    chunks: Sequence[Chunk],
    read_files: Sequence[dict[str, Any]],
    gathered: Iterable[dict[str, Any]],
) -> str:
    joined = joined_list(source)
    theirs = next(filter(None, (result["example"] for result in read_files)), None)
    if theirs is None:
        rejected = sum((Counter(result["rejected"]) for result in read_files), Counter())
        why = ", ".join(f"{reason} {count:,}" for reason, count in rejected.most_common())
        return f"{joined.path}: none of its rows can be used: {why}"
    ours = next(filter(None, (result["example"] for result in gathered)), None)
    if ours is None and chunks[0].container:
        fields = image_fields(source)
        rows = read_container(chunks[0].path, source, fields, images=False)
        values = (image_value(row["url"], row["columns"], source) for row in rows)
        ours = next(filter(None, values), None)
    return (
        f"{joined.path}: no row belongs to any image of {source.path}: its {joined.on}s are such "
        f"as {theirs!r}, the images' such as {ours!r}; set on, column or image_field of "
        "captions_from"
    )


def _partitions(source: SourceConfig, layout: Layout, number: int) -> int:
    """Stored once: a run that is resumed finds the files of the first one."""
    path = storage.join(layout.plan, f"join-{number}.json")
    if not storage.exists(path):
        storage.write_json(path, partitions_of(source))
    return int(storage.read_json(path))


def _folder(layout: Layout, number: int) -> str:
    return storage.join(layout.plan, f"join-{number}")


def _run(name: str, function: Any, items: Iterable[int], tasks: int) -> None:
    for _ in run_tasks(name, function, items, tasks):
        pass
