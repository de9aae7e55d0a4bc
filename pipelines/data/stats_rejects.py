"""What a page about a dataset shows of its rejected rows: hosts by failure, and examples.
Streams the rejects file by file; what is kept of them is bounded whatever their number."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.data.dataset import Dataset
from pipelines.data.write import read_table

TOP_HOSTS = 25
HOSTS_HELD = 200_000  # above it, those with the fewest failures are forgotten
HOSTS_KEPT = 50_000
EXAMPLES = 4  # of each reason
READERS = 8
COLUMNS = ["url", "stage", "reason", "detail"]
HOST = r"^(?i:https?)://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:]+)"


@dataclass(frozen=True)
class HostFailures:
    """One host's rejected downloads."""

    host: str
    rows: int
    reasons: list[tuple[str, int]]  # the most frequent first


@dataclass(frozen=True)
class RejectedRows:
    """What was seen of all rejects; `hosts_exact` says that no host was forgotten."""

    hosts: list[HostFailures]
    host_count: int
    downloads: int
    hosts_exact: bool
    examples: dict[str, list[dict[str, str]]]  # reason -> url and detail of some rows


def read_rejects(dataset: Dataset) -> RejectedRows:
    """Count failed downloads by host, and pick examples of each reason, always the same ones.

    Raises:
        StorageError: a file of rejects that cannot be read.
    """
    hosts, examples = _Hosts(), _Examples()
    for table in _tables(dataset):
        hosts.add(table)
        examples.add(table)
    return RejectedRows(
        hosts.top(TOP_HOSTS),
        len(hosts.failures),
        hosts.downloads,
        hosts.exact,
        dict(examples.chosen),
    )


def _tables(dataset: Dataset) -> Iterator[pa.Table]:
    """The rejects, one file's after another's, some read ahead."""
    paths = iter([storage.join(dataset.path, entry.name) for entry in dataset.rejects])
    with ThreadPoolExecutor(READERS) as readers:
        while batch := list(islice(paths, READERS)):
            yield from readers.map(lambda path: read_table(path, COLUMNS), batch)


class _Hosts:
    """Failed downloads by host and reason."""

    def __init__(self) -> None:
        self.failures: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.downloads = 0
        self.exact = True

    def add(self, table: pa.Table) -> None:
        failed = table.filter(pc.equal(table["stage"], "download"))
        found = pc.extract_regex(failed["url"], HOST)
        hosts = pc.utf8_lower(pc.struct_field(found, "host"))
        failed = pa.table({"host": hosts, "reason": failed["reason"]}).drop_null()
        counted = failed.group_by(["host", "reason"]).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            self.failures[row["host"]][row["reason"]] += row["count_all"]
        self.downloads += len(failed)
        if len(self.failures) > HOSTS_HELD:
            self.exact = False
            self.failures = defaultdict(Counter, self._ranked()[:HOSTS_KEPT])

    def top(self, count: int) -> list[HostFailures]:
        return [
            HostFailures(host, reasons.total(), reasons.most_common())
            for host, reasons in self._ranked()[:count]
        ]

    def _ranked(self) -> list[tuple[str, Counter[str]]]:
        return sorted(self.failures.items(), key=lambda item: (-item[1].total(), item[0]))


class _Examples:
    """Some rows of each reason, drawn from all files."""

    def __init__(self) -> None:
        self.chosen: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
        self._files: Counter[str] = Counter()  # in which a reason was met
        self._random = Random(0)

    def add(self, table: pa.Table) -> None:
        for reason in pc.unique(table["reason"]).to_pylist():
            rows = table.filter(pc.equal(table["reason"], reason))
            places = sorted(self._random.sample(range(len(rows)), min(EXAMPLES, len(rows))))
            self._files[reason] += 1
            for row in rows.take(places).select(["url", "detail"]).to_pylist():
                self._choose(reason, {name: value or "" for name, value in row.items()})

    def _choose(self, reason: str, row: dict[str, Any]) -> None:
        chosen = self.chosen[reason]
        if len(chosen) < EXAMPLES:
            chosen.append(row)
        elif self._random.random() * self._files[reason] < 1:
            chosen[self._random.randrange(EXAMPLES)] = row
