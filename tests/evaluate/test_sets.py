"""Published sets are read as they are published, and what is missing or broken is said clearly."""

import json
import re
import shutil
from pathlib import Path

import published_sets
import pytest

from caft.captions import split_sentences
from caft.errors import ConfigError, DataError
from pipelines.evaluate.config import PublishedConfig
from pipelines.evaluate.opening import MissingSet, open_benchmark
from pipelines.evaluate.sets import SETS
from pipelines.evaluate.sets.inventory import take_inventory

# Tests of the real lists run where a copy of them lies beside the repository.
IIW_FILES = Path(__file__).parents[3] / "shared" / "data" / "iiw"
LAYOUTS = [
    ("dci", None, published_sets.dci),
    ("docci", None, published_sets.docci),
    ("iiw", None, published_sets.iiw),
    ("sharegpt4v_1k", None, published_sets.sharegpt4v),
    ("sharegpt4v_10k", None, published_sets.sharegpt4v),
    ("sharegpt4v_1k", None, published_sets.sharegpt4v_of_published_code),
    ("sharegpt4v_10k", None, published_sets.sharegpt4v_of_published_code),
    ("docci", None, published_sets.docci_of_published_code),
    ("urban_1k", None, published_sets.urban),
    ("urban_1k", None, published_sets.urban_of_published_code),
    ("urban_1k", None, published_sets.urban_json),
    ("coco", None, published_sets.coco),
    ("coco", "karpathy_test", published_sets.coco_karpathy),
    ("flickr30k", None, published_sets.flickr_karpathy),
    ("flickr30k", None, published_sets.flickr_csv),
    ("flickr30k", None, published_sets.flickr_tokens),
]


def published(root, name, split=None, **more):
    return PublishedConfig(name="it", set=name, root=str(root), split=split, **more)


@pytest.mark.parametrize(("name", "split", "write"), LAYOUTS)
def test_a_published_layout_gives_its_images_and_captions_in_order(tmp_path, name, split, write):
    expected = write(tmp_path / "set")
    inventory = take_inventory(published(tmp_path / "set", name, split), "benchmarks.0")
    found = [(present.entry.image, present.entry.captions) for present in inventory.present]
    assert found == expected
    benchmark = open_benchmark(published(tmp_path / "set", name, split, partial=True), "b")
    texts = [(n, text) for n, (_, captions) in enumerate(expected) for text in captions]
    assert benchmark.text_to_image == tuple(n for n, _ in texts)
    assert list(benchmark.captions) == [text for _, text in texts]
    assert list(benchmark.sentences) == [tuple(split_sentences(text)) for _, text in texts]
    rows = [row for piece in benchmark.pieces for row in benchmark.rows.read(piece)]
    assert [row["url"] for row in rows] == list(benchmark.urls)
    for row, (image, _) in zip(rows, expected, strict=True):
        assert row["url"].endswith(image)
        assert row["image"] == Path(row["url"]).read_bytes()


@pytest.mark.parametrize(("name", "split", "write"), LAYOUTS)
def test_fewer_entries_than_were_published_are_refused_with_where_to_get_them(
    tmp_path, name, split, write
):
    write(tmp_path / "set")
    with pytest.raises(MissingSet, match=r"were published.*It comes from https?://") as caught:
        open_benchmark(published(tmp_path / "set", name, split), "benchmarks.2")
    assert "benchmarks.2 'it'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SETS)
def test_a_folder_without_the_set_is_one_clear_error(tmp_path, name):
    with pytest.raises(MissingSet, match=r"has no .*It comes from https?://"):
        open_benchmark(published(tmp_path, name, partial=True), "benchmarks.0")


def test_the_counts_are_those_that_were_published():
    first = {name: next(iter(known.splits.values())) for name, known in SETS.items()}
    assert (first["dci"].images, first["docci"].images, first["iiw"].images) == (7805, 5000, 612)
    for name in ("dci", "iiw"):
        parts = [counts.images for split, counts in SETS[name].splits.items() if split != "all"]
        assert sum(parts) == first[name].images
    assert (first["coco"].images, first["coco"].texts) == (5000, 25_000)
    assert (first["flickr30k"].images, first["flickr30k"].texts) == (1000, 5000)


def test_the_real_lists_of_imageinwords_are_whole():
    if not IIW_FILES.exists():
        pytest.skip("no copy of ImageInWords")
    inventory = take_inventory(published(IIW_FILES, "iiw"), "benchmarks.0")
    assert (inventory.entries, inventory.texts, len(inventory.missing)) == (612, 612, 612)
    assert inventory.problems == [
        f"612 files are missing, first {IIW_FILES}/images/aar_test_04600.jpg"
    ]


def test_missing_images_are_named_and_left_out_on_request(tmp_path, capsys):
    expected = published_sets.docci(tmp_path)
    (tmp_path / "images" / expected[1][0]).unlink()
    with pytest.raises(MissingSet, match=f"1 files are missing, first .*{expected[1][0]}"):
        open_benchmark(published(tmp_path, "docci"), "benchmarks.0")
    benchmark = open_benchmark(published(tmp_path, "docci", partial=True), "benchmarks.0")
    assert len(benchmark.urls) == len(benchmark.sentences) == 2
    assert "it is partial: 3 images are listed, 5,000 were published" in capsys.readouterr().out


def test_images_may_lie_in_folders_of_their_own(tmp_path):
    expected = published_sets.sharegpt4v(tmp_path / "set")
    shutil.move(tmp_path / "set" / "sam" / "images", tmp_path / "flat")
    config = published(tmp_path / "set", "sharegpt4v_1k", images=(str(tmp_path / "flat"),))
    inventory = take_inventory(config, "benchmarks.0")
    names = [image.rpartition("/")[2] for image, _ in expected]
    assert [present.image.path for present in inventory.present] == [
        str(tmp_path / "flat" / name) for name in names
    ]


def test_a_set_is_the_same_wherever_it_lies_and_another_with_other_texts(tmp_path):
    published_sets.docci(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    there, copied, cut = (
        open_benchmark(published(tmp_path / place, "docci", partial=True, sentences=mode), "b")
        for place, mode in (("a", None), ("b", None), ("a", "reference"))
    )
    assert there.fingerprint == copied.fingerprint
    assert there.sentences != cut.sentences  # "St. Mary's" is cut by the reference's rule
    path = tmp_path / "b" / "docci_descriptions.jsonlines"
    path.write_text(path.read_text().replace("red kite", "blue kite"))
    changed = open_benchmark(published(tmp_path / "b", "docci", partial=True), "b")
    assert changed.fingerprint != there.fingerprint


def test_an_unknown_set_or_split_is_named_with_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"benchmarks\.1\.set: 'doci' is no published set.*docci"):
        open_benchmark(published(tmp_path, "doci"), "benchmarks.1")
    with pytest.raises(ConfigError, match=r"benchmarks\.1\.split: docci has no 'dev'.*qual_dev"):
        open_benchmark(published(tmp_path, "docci", "dev"), "benchmarks.1")


def replace_in(name, old, new):
    def damage(root):
        path = root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


SHARE = "share-captioner_coco_lcs_sam_1246k_1107.json"
COCO_FILE = "annotations/captions_val2017.json"


@pytest.mark.parametrize(
    ("name", "write", "damage", "said"),
    [
        ("dci", published_sets.dci, replace_in("splits.json", '"valid"', '"val"'), "no 'valid'"),
        ("dci", published_sets.dci, replace_in("splits.json", "11-data", "99-data"), "99-data"),
        (
            "dci",
            published_sets.dci,
            replace_in("annotations/11-data.json", "extra_caption", "extra"),
            "11-data.json: no 'extra_caption'",
        ),
        (
            "docci",
            published_sets.docci,
            replace_in("docci_descriptions.jsonlines", '"description": "Picture 2', '"d": "x'),
            "jsonlines: line 3: no 'description'",
        ),
        (
            "docci",
            published_sets.docci,
            replace_in("docci_descriptions.jsonlines", "}\n", "\n"),
            "jsonlines: line 1: not valid JSON",
        ),
        (
            "docci",
            published_sets.docci,
            replace_in(
                "docci_descriptions.jsonlines", 'file": "test_00001', 'file": "../test_00001'
            ),
            "leads out of the set's folders",
        ),
        (
            "iiw",
            published_sets.iiw,
            replace_in("DCI_Test/data.jsonl", '"IIW": "A balcony."', '"IIW": ["A balcony."]'),
            "'IIW' is list, str is due",
        ),
        ("sharegpt4v_1k", published_sets.sharegpt4v, replace_in(SHARE, "}]", "]"), "broken JSON"),
        (
            "sharegpt4v_1k",
            published_sets.sharegpt4v,
            replace_in(SHARE, '"from": "gpt", "value"', '"from": "gpt", "text"'),
            "no 'value'",
        ),
        ("coco", published_sets.coco, replace_in(COCO_FILE, '"annotations"', '"a"'), "annotations"),
        ("coco", published_sets.coco, replace_in(COCO_FILE, "{", "["), "not valid JSON"),
        (
            "urban_1k",
            published_sets.urban,
            lambda root: (root / "caption" / "2.txt").write_text("  \n"),
            "2.txt: empty",
        ),
        (
            "urban_1k",
            published_sets.urban,
            lambda root: (root / "caption" / "2.txt").write_bytes(b"caf\xe9 "),
            "2.txt: not UTF-8",
        ),
        (
            "urban_1k",
            published_sets.urban_json,
            lambda root: (root / "urban1k.json").write_text(json.dumps({"1.jpg": "Street"})),
            "a list is due",
        ),
        (
            "flickr30k",
            published_sets.flickr_tokens,
            replace_in("results_20130124.token", "#1\t", "#1 "),
            "line 2: no tab",
        ),
        (
            "flickr30k",
            published_sets.flickr_tokens,
            replace_in("test.txt", "1009434119", "7"),
            "has no 7.jpg",
        ),
        (
            "flickr30k",
            published_sets.flickr_csv,
            replace_in("flickr_annotations_30k.csv", "split", "part"),
            "no 'split'",
        ),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, name, write, damage, said):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        open_benchmark(published(tmp_path, name, partial=True), "benchmarks.0")
    assert str(tmp_path) in str(caught.value) or "set's folders" in str(caught.value)
    assert "\n" not in str(caught.value)
