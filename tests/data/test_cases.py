"""Lists and files as people have them: each case goes through the stage, and gives what is due."""

import gzip
import shutil
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scripted_server import body, serving
from sources_support import source
from stage_support import picture, read, rejects_of, small_config

from caft.errors import DataError
from pipelines.data.dataset import open_dataset
from pipelines.data.sources import read_tables
from pipelines.data.sources.check import check_source
from pipelines.data.stage import run
from pipelines.data.verify import verify

CASES = Path(__file__).parent / "cases"
SERVER = "http://127.0.0.1:8000/img/"
LISTS = ["A dog runs in the park", "It is big", "Two cats sit"]

# Captions of the first kept row by column, number of kept rows, and what is rejected.
DUE = {
    "01_one_bad_byte.jsonl": (
        {"caption": ["A dog number 0 near the café"]},
        19,
        {"bad_text": 1},
    ),
    "02_header_on_unquoted.tsv": ({"caption": ["a quiet station in the morning"]}, 9, {}),
    "03_tar_json_spelled_list.tar": (
        {"raw_caption": ["a dog"], "shortSV": LISTS, "longSV": LISTS},
        1,
        {},
    ),
    "04_dreamlip_strings.parquet": (
        {"raw_caption": ["a dog"], "shortSV": LISTS, "longSV": ["A dog runs", "It is big"]},
        3,
        {},
    ),
    "05_dotted_names.tar": ({"txt": ["Picture 0 of a dog"]}, 3, {}),
    "06_late_column.jsonl.gz": ({"caption": ["A dog number 0"]}, 1320, {}),
    "09_avif_folder": ({"txt": ["A dog runs"]}, 2, {}),
    "09_avif_jfif.tar": ({"txt": ["A dog"]}, 3, {}),
    "10_array_image_url_caption.json": ({"blip_caption": ["a dog number 0"]}, 3, {}),
    "10_array_of_records.json": ({"caption": ["A dog number 0"]}, 3, {}),
    "11_benign_jpeg": ({"txt": ["Coloured squares, junk_between_headers"]}, 3, {}),
    "14_records.jsonlines": ({"description": ["An indoor view", "A dog is here"]}, 3, {}),
    "16_semicolon.csv": ({"caption": ["A dog runs"]}, 1, {}),
    "16_utf16.csv": ({"caption": ["A dog runs"]}, 1, {}),
    "18_caption_with_url_line.csv": (
        {"caption": ["Seen at", "https://example.com/page, a dog runs"]},
        2,
        {},
    ),
    "21_captions_list_of_dicts.jsonl": ({"captions": ["A dog 0", "Two dogs"]}, 3, {}),
    "25_input_outputs.tar": ({"txt": ["Picture 0 of a dog"]}, 2, {}),
    "26/five_captions_per_image.csv": (
        {"caption": ["A dog runs over the grass", "A brown dog plays", "An animal in a garden"]},
        2,
        {"merged_captions": 3},
    ),
}
REFUSED = {
    "07_latin1.csv": r"4 of its first 5 lines are not UTF-8, .* set encoding: cp1252$",
    "08_unsorted.tar": r"the tar is not sorted by name; sort it$",
    "19_pickled.parquet": r"pickled bytes, which are not loaded",
}


class EveryPicture(dict):
    """Answers each path with a picture of its own."""

    def get(self, path, default=None):
        return body(picture(zlib.crc32(path.encode())))


def served(name: str, base_url: str, folder: Path) -> dict:
    """A case in `folder` whose URLs are below `base_url`, as a source."""
    place = folder / name
    if "/" in name:  # beside its images
        shutil.copytree(CASES / name.split("/")[0], place.parent)
    elif (CASES / name).is_dir():
        shutil.copytree(CASES / name, place)
    elif name.endswith(".parquet"):
        rows = pq.read_table(CASES / name)
        urls = [url.replace(SERVER, base_url) for url in rows[0].to_pylist()]
        pq.write_table(rows.set_column(0, rows.column_names[0], [urls]), place)
    else:
        data = (CASES / name).read_bytes()
        if name.endswith(".gz"):
            data = gzip.compress(gzip.decompress(data).replace(SERVER.encode(), base_url.encode()))
        elif data.startswith(b"\xff\xfe"):
            data = data.decode("utf-16").replace(SERVER, base_url).encode("utf-16")
        elif not name.endswith(".tar"):
            data = data.replace(SERVER.encode(), base_url.encode())
        place.write_bytes(data)
    fields = {"name": name, "path": str(place)}
    if name.startswith("14"):
        fields["image_root"] = base_url
    return fields


@pytest.fixture(scope="module")
def made(ray_cluster, tmp_path_factory):
    """The dataset of all cases: its manifest, and its kept rows by source."""
    folder = tmp_path_factory.mktemp("cases")
    with serving() as server:
        server.script = EveryPicture()
        bases = {name: server.url(f"/{n}/") for n, name in enumerate(DUE)}
        sources = [served(name, bases[name], folder) for name in DUE]
        # Cases have pictures in common.
        duplicates = {"same_bytes": False, "near_distance": None}
        config = small_config(folder, sources, chunk_rows=1000, duplicates=duplicates)
        run(config)
    places = {base: name for name, base in bases.items()}
    places |= {str(folder / name.split("/")[0]): name for name in DUE}
    kept = defaultdict(list)
    for entry in open_dataset(config.output).files:
        for row in read(f"{config.output}/{entry.name}").to_pylist():
            name = next(name for place, name in places.items() if row["url"].startswith(place))
            kept[name].append(row)
    assert verify(config.output) == []
    return open_dataset(config.output).manifest, kept, rejects_of(config.output)


def captions(row):
    found = defaultdict(list)
    for entry in row["captions"]:
        found[entry["source"]] += entry["sentences"]
    return dict(found)


@pytest.mark.parametrize("name", DUE)
def test_what_is_due(made, name):
    manifest, kept, _ = made
    due, rows, rejected = DUE[name]
    counts = manifest["sources"][name]
    assert {reason: n for reason, n in counts["rejected"].items() if n} == rejected
    assert counts["kept"] == len(kept[name]) == rows
    assert captions(kept[name][0]) == due


def test_more_of_single_cases(made):
    manifest, kept, rejects = made
    late = Counter("long_caption" in captions(row) for row in kept["06_late_column.jsonl.gz"])
    assert late[True] == 20
    unquoted = [captions(row)["caption"] for row in kept["02_header_on_unquoted.tsv"]]
    assert ['" a red boat on the lake'] in unquoted
    assert ['"golden" view of the hills'] in unquoted
    assert [len(row["captions"]) for row in kept["26/five_captions_per_image.csv"]] == [3, 2]
    counts = manifest["counts"]
    assert counts["input_rows"] == counts["kept"] + len(rejects)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_before_the_start(name):
    with pytest.raises(DataError, match=REFUSED[name]) as error:
        check_source(source(CASES / name))
    assert "\n" not in str(error.value)


def test_a_large_field_that_no_one_uses_costs_no_row():
    case = source(CASES / "13_big_unused_field.csv.gz")
    check_source(case)
    with gzip.open(CASES / "13_big_unused_field.csv.gz", "rb") as lines:
        written = sum(1 for _ in lines) - 1
    reasons = Counter(
        reason for table in read_tables(case) for reason in table["reason"].to_pylist()
    )
    assert reasons == {None: written}
