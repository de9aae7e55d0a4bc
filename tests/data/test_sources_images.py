"""Collections of images: folders, WebDataset tars and datasets of ours."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources_support import captions_of, image_bytes, read_rows, source, tar_bytes, write

from caft.errors import DataError
from pipelines.data.dataset import DATASET_SCHEMA
from pipelines.data.sources import (
    detect_kind,
    fetch_file,
    is_file,
    list_containers,
    read_container,
    source_identity,
)
from pipelines.data.sources.check import check_source


def read_all(config, extra=()):
    return [row for path in list_containers(config) for row in read_container(path, config, extra)]


def test_a_folder_of_images_and_all_below_it(tmp_path):
    image = image_bytes()
    write(tmp_path / "b/2.PNG", image)
    write(tmp_path / "b/2.txt", "Two dogs.\n")
    write(tmp_path / "b/3.jpeg", image)
    write(tmp_path / "1.jpg", image)
    write(tmp_path / "1.txt", "One dog.")
    write(tmp_path / "1.json", json.dumps({"caption": "One dog.", "long_captions": ["A.", "B."]}))
    write(tmp_path / "4.webp", image)
    write(tmp_path / "4.json", "no JSON")
    write(tmp_path / "notes.md", "no image")
    (tmp_path / "b/loop").symlink_to(tmp_path)
    config = source(tmp_path)
    assert detect_kind(config) == "folder"
    check_source(config)
    rows = read_rows(config, ["score"])
    assert [row["url"] for row in rows] == [
        f"{tmp_path}/{name}" for name in ("1.jpg", "4.webp", "b/2.PNG", "b/3.jpeg")
    ]
    assert [captions_of(row) for row in rows] == [
        {"long": ["A.", "B."], "caption": ["One dog."]},
        {},
        {"txt": ["Two dogs."]},
        {},
    ]
    assert [row["reason"] for row in rows] == [None, "no_caption", None, "no_caption"]
    assert is_file(rows[0]["url"])
    fetch_file(rows[0])
    assert rows[0]["data"] == image


def test_a_folder_without_anything_to_read(tmp_path):
    write(tmp_path / "notes.md", "no image")
    with pytest.raises(DataError, match="neither a dataset of ours nor images, tars or lists"):
        check_source(source(tmp_path))


def test_images_of_a_list_that_are_not_there(tmp_path):
    write(tmp_path / "1.jpg", image_bytes())
    (tmp_path / "3.jpg").mkdir()
    path = write(tmp_path / "list.csv", "file_name,text\n1.jpg,Dog.\n2.jpg,Dog.\n3.jpg,Dog.\n")
    rows = read_rows(source(path))
    for row in rows:
        fetch_file(row)
    assert [row["reason"] for row in rows] == [None, "missing_file", "missing_file"]
    assert rows[0]["data"] == image_bytes()
    assert not is_file("HTTPS://a/b.jpg")


def test_samples_of_tars(tmp_path):
    image = image_bytes()
    first = [
        ("0001.jpg", image),
        ("0001.txt", b"A dog."),
        ("0001.json", json.dumps({"caption": "A dog.", "text": ["A cat."], "nsfw": 0.1}).encode()),
        ("0002.mask.png", b"mask"),
        ("0002.png", image),
        ("0002.cls", b"7"),
        ("folder.v2/0002.txt", b"Another key."),
        ("folder.v2/0002.JPG", image),
        ("README", b"no sample"),
    ]
    write(tmp_path / "a-00.tar", tar_bytes(first))
    write(tmp_path / "a-01.tar", tar_bytes([("0001.txt", b"No image.")]))
    config = source(tmp_path / "a-{00..01}.tar")
    assert detect_kind(config) == "webdataset"
    check_source(config)
    assert list_containers(config) == [f"{tmp_path}/a-00.tar", f"{tmp_path}/a-01.tar"]
    rows = read_all(config, ["nsfw"])
    assert [row["url"] for row in rows] == [
        f"{tmp_path}/a-00.tar::0001.jpg",
        f"{tmp_path}/a-00.tar::0002.png",
        f"{tmp_path}/a-00.tar::folder.v2/0002.JPG",
        f"{tmp_path}/a-01.tar::0001",
    ]
    # The .txt repeats what the .json has.
    assert captions_of(rows[0]) == {"caption": ["A dog."], "text": ["A cat."]}
    assert rows[0]["columns"] == {"nsfw": "0.1"}
    assert [row["reason"] for row in rows] == [None, "no_caption", None, "missing_file"]
    assert [row["data"] for row in rows] == [image, image, image, None]
    assert len({row["key"] for row in rows}) == 4
    chosen = read_all(source(config.path, caption_columns={"text": "long"}))[0]
    assert captions_of(chosen) == {"text": ["A cat."]}


def test_a_folder_of_tars_and_a_compressed_one(tmp_path):
    data = tar_bytes([("1.png", image_bytes()), ("1.txt", b"A dog.")])
    write(tmp_path / "tars/a.tar", data)
    write(tmp_path / "tars/notes.txt", "no tar")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    write(tmp_path / "tars/b.tar.gz", stream.getvalue())
    config = source(tmp_path / "tars")
    assert detect_kind(config) == "webdataset"
    assert [row["url"].rsplit("/", 1)[1] for row in read_all(config)] == [
        "a.tar::1.png",
        "b.tar.gz::1.png",
    ]
    assert len(source_identity(config)) == 2


def test_members_that_are_no_plain_files_and_names_that_climb(tmp_path):
    links = []
    for name, kind in (("1.jpg", tarfile.SYMTYPE), ("1.png", tarfile.LNKTYPE)):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, "/etc/passwd"
        links.append(link)
    device = tarfile.TarInfo("1.webp")
    device.type = tarfile.CHRTYPE
    members = [
        *links,
        device,
        ("1.txt", b"A link."),
        ("../../etc/cron.png", image_bytes(1)),
        ("../../etc/cron.txt", b"Climbs."),
        ("/etc/cron.png", image_bytes(2)),
        ("/etc/cron.txt", b"Absolute."),
        ("etc/cron.png", image_bytes(3)),
        ("etc/cron.txt", b"Inside."),
    ]
    path = write(tmp_path / "a.tar", tar_bytes(members))
    rows = read_all(source(path))
    assert [row["url"] for row in rows] == [
        f"{path}::1",
        f"{path}::../../etc/cron.png",
        f"{path}::/etc/cron.png",
        f"{path}::etc/cron.png",
    ]
    assert rows[0]["reason"] == "missing_file"
    assert rows[0]["data"] is None
    assert [captions_of(row)["txt"] for row in rows[1:]] == [
        ["Climbs."],
        ["Absolute."],
        ["Inside."],
    ]
    assert [row["data"] for row in rows[1:]] == [image_bytes(n) for n in (1, 2, 3)]
    assert len({row["key"] for row in rows}) == 4


@pytest.mark.parametrize("kept", [0, 100, 700, 2000, 3072, 3500, 5000])
def test_a_tar_that_ends_early(tmp_path, kept):
    members = [member for n in range(3) for member in ((f"{n}.png", image_bytes(n)),)]
    members += [("big.png", bytes(4000))]
    data = tar_bytes(members)
    path = write(tmp_path / "a.tar", data[:kept])
    with pytest.raises(DataError, match=r"a\.tar: not a whole tar: .* after \d files"):
        read_all(source(path))


def test_no_tar_at_all(tmp_path):
    with pytest.raises(DataError, match=r"a\.tar: none of .* \(not a whole tar: .*fetch it again"):
        check_source(source(write(tmp_path / "a.tar", b"this is no tar" * 100)))


def test_a_tar_whose_sample_is_cut_off_at_a_compressed_end(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        info = tarfile.TarInfo("1.png")
        info.size = 50_000
        tar.addfile(info, io.BytesIO(image_bytes(0, 200)[:50_000]))
    data = stream.getvalue()
    path = write(tmp_path / "a.tar.gz", data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.tar\.gz: (cannot be read|not a whole tar)"):
        read_all(source(path))


@pytest.fixture
def dataset(tmp_path):
    """Two parts of a dataset as the stage writes them."""
    files = []
    for part in range(2):
        rows = [
            {
                "key": f"{part}{n}".zfill(32),
                "url": f"http://a/{part}/{n}",
                "image": image_bytes(n),
                "width": 8,
                "height": 8,
                "original_width": 80,
                "original_height": 80 + n,
                "sha256": "0" * 64,
                "phash": 1,
                "captions": [{"source": "longSV", "kind": "long", "sentences": ["A dog.", "B."]}],
                "superpixels": None,
                "split": "test" if part else "train",
            }
            for n in range(3)
        ]
        path = tmp_path / "set" / f"part-{part:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, DATASET_SCHEMA), path)
        files.append({"name": path.name, "rows": 3, "bytes": path.stat().st_size, "sha256": "0"})
    write(tmp_path / "set" / "manifest.json", json.dumps({"files": files}))
    return tmp_path / "set"


def test_a_dataset_of_ours_is_read_without_downloading(dataset):
    config = source(dataset)
    assert detect_kind(config) == "dataset"
    check_source(config)
    rows = read_all(config)
    assert [row["url"] for row in rows] == [f"http://a/{p}/{n}" for p in (0, 1) for n in range(3)]
    row = rows[-1]
    assert (row["key"], row["data"]) == ("12".zfill(32), image_bytes(2))
    assert (row["original_width"], row["original_height"]) == (80, 82)
    assert row["texts"] == [
        {"source": "longSV", "kind": "long", "texts": ["A dog.", "B."], "sentences": True}
    ]
    assert [row["split"] for row in rows] == ["train"] * 3 + ["test"] * 3
    assert {row["split"] for row in read_all(source(dataset, split="train"))} == {"train"}


def test_an_unfinished_or_damaged_dataset(dataset):
    (dataset / "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-00001\.parquet: corrupt Parquet"):
        check_source(source(dataset))
    (dataset / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        check_source(source(dataset, kind="dataset"))
