"""Lists with broken lines: each is counted, and a quote that swallows the rest is an error."""

from random import Random

import pytest
from sources_support import captions_of, read_rows, source, write

from caft.errors import DataError
from pipelines.data.sources import read_tables
from pipelines.data.sources.check import check_source


def test_lines_with_other_numbers_of_columns_are_counted(tmp_path):
    lines = ["url,text", "http://a/1,Dog.", "http://a/2,Dog,cat.", "http://a/3", "http://a/4,Dog."]
    rows = read_rows(source(write(tmp_path / "list.csv", "\n".join(lines))))
    kept = [row["url"] for row in rows if row["reason"] is None]
    bad = [row["detail"] for row in rows if row["reason"] == "bad_row"]
    assert kept == ["http://a/1", "http://a/4"]
    assert bad == [
        "row 3: 3 columns, 2 are due: http://a/2,Dog,cat.",
        "row 4: 1 columns, 2 are due: http://a/3",
    ]


def test_bad_lines_whose_bytes_are_no_text(tmp_path):
    path = write(tmp_path / "list.csv", b"url,text\nhttp://a/1,caf\xe9,x\nhttp://a/2,caf\xe9\n")
    rows = read_rows(source(path))
    assert [row["reason"] for row in rows] == ["bad_text", "bad_row"]
    assert rows[1]["detail"].endswith("http://a/1,caf\ufffd,x")


def test_a_long_bad_line_is_shown_shortened(tmp_path):
    path = write(tmp_path / "list.csv", "url,text\nhttp://a/1,Dog.\n" + "x," * 5000 + "\n")
    (_, row) = read_rows(source(path))
    assert row["reason"] == "bad_row"
    assert len(row["detail"]) < 300


def test_a_list_of_bad_lines_only(tmp_path):
    path = write(tmp_path / "list.csv", "url,text\n" + "http://a/1,a,b\n" * 5)
    with pytest.raises(DataError, match=r"none of its first 5 rows .* 3 columns, 2 are due"):
        check_source(source(path))


@pytest.mark.parametrize("columns", [2, 3])
def test_no_line_that_a_broken_quote_swallows_is_lost(tmp_path, columns):
    more = ",x" * (columns - 2)
    header = "url,text" + ",note" * (columns - 2)
    lines = [header, f"http://a/1,Dog.{more}", f'http://a/2,"open{more}']
    lines += [f"http://a/{n},Dog.{more}" for n in range(3, 7)]
    lines += [f'http://a/7,"Dog, cat."{more}', f"http://a/8,Dog.{more}"]
    path = write(tmp_path / "list.csv", "\n".join(lines) + "\n")
    rows = read_rows(source(path))
    assert len(rows) == 8
    kept = [row["url"] for row in rows if row["reason"] is None]
    assert kept == [f"http://a/{n}" for n in range(1, 9) if n != 2]
    (bad,) = [row["detail"] for row in rows if row["reason"] == "bad_row"]
    assert "quote" in bad
    assert "http://a/2" in bad


@pytest.mark.parametrize("count", [1, 50, 5000, 200_000])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_quote_that_is_never_closed_costs_its_row(tmp_path, count, place):
    row = "http://a/{0},A dog." if place == "first" else "A dog.,http://a/{0}"
    opened = 'http://q,"open' if place == "first" else '"open,http://q'
    lines = ["url,text" if place == "first" else "text,url"]
    lines += [row.format(n) for n in range(3)] + [opened]
    lines += [row.format(n) for n in range(count)]
    path = write(tmp_path / "list.csv", "\n".join(lines) + "\n")
    config = source(path, quoting="doubled")
    tables = list(read_tables(config))
    assert sum(table.num_rows for table in tables) == count + 4
    bad = [d for t in tables for d in t["detail"].to_pylist() if d]
    assert len(bad) == 1
    assert "a quote is not closed" in bad[0]


def test_many_broken_rows_are_refused_with_their_number_and_reason(tmp_path):
    lines = ["url,text"]
    lines += [f"http://a/{n},Dog,cat" if n % 10 == 0 else f"http://a/{n},Dog" for n in range(100)]
    config = source(write(tmp_path / "list.csv", "\n".join(lines)))
    with pytest.raises(DataError, match=r"10 of its first 100 rows are broken: bad_row 10 \(row 2"):
        check_source(config)
    check_source(config.model_copy(update={"max_bad_share": 0.2}))


def test_line_breaks_in_captions_are_no_broken_quotes(tmp_path):
    captions = ["Dog.\nCat.\n", "See\nhttp://b/1 there", "\n\n", "A link:\nhttps://t.co/x\n"]
    text = "url,text\n" + "".join(f'http://a/{n},"{c}"\n' for n, c in enumerate(captions))
    rows = read_rows(source(write(tmp_path / "list.csv", text)))
    assert [captions_of(row).get("text") for row in rows] == [
        ["Dog.\nCat."],
        ["See\nhttp://b/1 there"],
        None,
        ["A link:\nhttps://t.co/x"],
    ]


@pytest.mark.parametrize("seed", range(150))
def test_wherever_quotes_are_missing_or_too_many_every_line_is_accounted(tmp_path, seed):
    random = Random(seed)
    cells = ["Dog", '"Dog, cat"', '"A ""b"" c"', '""', 'it is 5" big']
    names = ["text", "long_caption"][: random.randint(1, 2)]
    place = random.randint(0, len(names))
    lines = [",".join([*names[:place], "url", *names[place:]])]
    for number in range(random.randint(2, 12)):
        url = f"http://a/{number:03d}"
        row = random.choices(cells, k=len(names))
        line = ",".join([*row[:place], url, *row[place:]])
        if random.random() < 0.2:
            start = line.index(url)
            outside = [n for n in range(len(line) + 1) if not start < n < start + len(url)]
            cut = random.choice(outside)
            line = f'{line[:cut]}"{line[cut:]}'
        lines.append(line)
    path = write(tmp_path / "list.csv", "\n".join(lines) + "\n" * random.randint(0, 1))
    rows = read_rows(source(path))
    assert len(rows) == len(lines) - 1
    found = "".join(row["url"] or row["detail"] for row in rows)
    assert all(f"http://a/{number:03d}" in found for number in range(len(lines) - 1))
    assert not any("http" in text for row in rows for e in row["texts"] for text in e["texts"])
