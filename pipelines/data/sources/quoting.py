"""Tells rows of a delimited list that a broken quote has run together from rows with line breaks.
Stands between the CSV parser, which goes on at the next quote, and the rows that are counted."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from caft.errors import DataError
from pipelines.data.sources import paths
from pipelines.data.sources.raw import shorten

# A row of more lines is not a caption with line breaks, but a quote that nothing closes.
MAX_ROW_LINES = 1000


class QuoteCheck:
    """Looks at a list's rows in their order; one for each file."""

    def __init__(self, path: str, delimiter: str, header: bool, url_index: int) -> None:
        self._path = path
        self._delimiter = delimiter
        self._url_index = url_index
        self._rows = int(header)
        self._invalid: list[str] = []
        self._error: DataError | None = None
        self._last_invalid = 0
        self._swallowing = 0  # the last row that swallowed others
        self._open = 0  # the last row that ends a block with a line break in its last cell
        mark = r"\t" if delimiter == "\t" else delimiter
        url = rf'"?https?://[^\s{mark}"]+"?'
        # A URL that fills a cell, inside of a cell that has line breaks.
        self._pattern = rf"\n{url}{mark}|{mark}{url}(?:{mark}|\r?\n|$)"

    def note_invalid(self, row: pacsv.InvalidRow) -> str:
        """Take a row with another number of columns, as the parser's handler of such rows."""
        self._rows += 1
        breaks = row.text.count("\n")
        self._last_invalid = row.number
        if breaks > MAX_ROW_LINES:
            self._error = self._error or self.unclosed(f"over {breaks:,} lines", row.number)
        elif breaks and self._swallows(pa.array([row.text]))[0].as_py():
            self._swallowing = row.number
            self._invalid += self._parts(row.text, row.number)
        else:
            counts = f"{row.actual_columns} columns, {row.expected_columns} are due"
            self._invalid.append(f"row {row.number}: {counts}: {shorten(row.text)}")
        return "skip"

    def take_invalid(self) -> list[str]:
        """Details of the invalid rows since the last time, one for each line of the list.

        Raises:
            DataError: one of them has more lines than a row can have.
        """
        if self._error is not None:
            raise self._error
        taken, self._invalid = self._invalid, []
        return taken

    def split(self, table: pa.Table) -> tuple[pa.Table, list[str]]:
        """The rows that are whole, and details for the lines of those that hold other rows.

        Raises:
            DataError: a row has more lines than a row can have.
        """
        first = self._rows + 1
        self._rows += table.num_rows
        swallowing: set[int] = set()
        for number, column in enumerate(table.columns):
            broken = pc.indices_nonzero(pc.match_substring(column, "\n"))
            if not len(broken):
                continue
            cells = column.take(broken)
            breaks = pc.count_substring(cells, "\n")
            worst = pc.max(breaks).as_py()
            if worst > MAX_ROW_LINES:
                row = first + broken[pc.index(breaks, worst).as_py()].as_py()
                raise self.unclosed(f"over {worst:,} lines", row)
            if number != self._url_index:
                broken = broken.filter(self._swallows(cells))
            swallowing.update(broken.to_pylist())
        if table.num_rows and self._last_invalid < self._rows:
            last = table.num_rows - 1
            if last in swallowing:
                self._swallowing = self._rows
            if table.column(-1)[last].as_py().endswith("\n"):
                self._open = self._rows
        if not swallowing:
            return table, []
        details: list[str] = []
        for index in sorted(swallowing):
            row_cells = [column[index].as_py() for column in table]
            details += self._parts(self._delimiter.join(row_cells), first + index)
        keep = [index not in swallowing for index in range(table.num_rows)]
        return table.filter(pa.array(keep)), details

    def check_end(self) -> None:
        """Raises DataError if the list's last row swallowed others."""
        # The parser ends an open quote with the file, whose last line break is then in the cell.
        is_open = self._open == self._rows and not _ends_with_quote(self._path)
        if is_open or self._swallowing >= self._rows:
            raise self.unclosed("to the end of the file", self._rows)

    def unclosed(self, extent: str, row: int | None = None) -> DataError:
        return DataError(
            f"{self._path}: near row {self._rows + 1 if row is None else row:,}: a row runs on "
            f"{extent}: a quote is not closed; mend the quoting there"
        )

    def _swallows(self, cells: pa.Array | pa.ChunkedArray) -> pa.Array:
        found = pc.match_substring_regex(cells, self._pattern)
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found

    def _parts(self, text: str, row: int) -> list[str]:
        note = "part of a row that a broken quote runs over several lines"
        return [f"near row {row}: {note}: {shorten(line)}" for line in text.split("\n") if line]


def _ends_with_quote(path: str) -> bool:
    return paths.tail(path).rstrip().endswith(b'"')
