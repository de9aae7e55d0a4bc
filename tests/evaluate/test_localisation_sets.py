"""RefCOCO, VOC and ADE as they are published: masks, pickles that would run code, and scores."""

import io
import json
import pickle
import shutil

import cv2
import numpy as np
import published_sets
import pytest
from evaluate_support import start
from PIL import Image

import caft
from caft.config import validate
from caft.errors import DataError
from caft.heat_maps import encode_one, encode_sentences, heat_maps
from caft.metrics import achievable_segmentation_accuracy, binarise, mask_iou
from caft.metrics.classification import class_features
from caft.transforms import decode_image
from pipelines.evaluate.config import EvaluateConfig, PublishedConfig
from pipelines.evaluate.measures import SegmentationMeasure, read_label_map
from pipelines.evaluate.opening import open_benchmark
from pipelines.evaluate.sets.refcoco import read_refs


def published(root, name, split=None):
    return PublishedConfig(name="it", set=name, root=str(root), split=split, partial=True)


def rows_of(benchmark):
    return [row for piece in benchmark.pieces for row in benchmark.rows.read(piece)]


@pytest.mark.parametrize(
    ("name", "dataset", "by"),
    [
        ("refcoco", "refcoco", "unc"),
        ("refcoco_google", "refcoco", "google"),
        ("refcoco+", "refcoco+", "unc"),
        ("refcocog", "refcocog", "umd"),
        ("refcocog_google", "refcocog", "google"),
    ],
)
def test_references_are_sentences_with_masks_image_by_image(tmp_path, name, dataset, by):
    published_sets.refcoco(tmp_path, dataset, by)
    benchmark = open_benchmark(published(tmp_path, name, "val"), "b")
    assert [url.rpartition("_")[2] for url in benchmark.urls] == [
        "000000000001.jpg",
        "000000000003.jpg",
    ]
    first, last = (benchmark.regions[url] for url in benchmark.urls)
    assert [region.text for region in first] == ["red kite", "the kite on the left", "hill"]
    assert [region.text for region in last] == ["dog"]
    square = np.zeros((48, 64), bool)
    square[8:32, 8:32] = True
    np.testing.assert_array_equal(first[0].mask, square)
    np.testing.assert_array_equal(first[2].mask, np.arange(64)[None].repeat(48, 0) >= 32)
    assert not benchmark.sentences


def test_another_split_has_other_references(tmp_path):
    published_sets.refcoco(tmp_path)
    benchmark = open_benchmark(published(tmp_path, "refcoco", "testA"), "b")
    ((region,),) = benchmark.regions.values()
    assert region.text == "man in café"


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, protocol):
    published_sets.refcoco(tmp_path)
    target = tmp_path / "written"
    path = tmp_path / "refcoco" / "refs(unc).p"
    path.write_bytes(pickle.dumps([Malicious(str(target))], protocol))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: the pickle asks for \w*io\.open.*malic"):
        open_benchmark(published(tmp_path, "refcoco"), "b")
    assert not target.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_plain_values_are_read_whatever_their_protocol(tmp_path, protocol):
    value = [{"sent": "man in café", "ids": [1, 2**40], "box": (1.5, None, True)}]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_refs(str(path)) == value


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_pickle_cut_short_is_named(tmp_path, cut):
    published_sets.refcoco(tmp_path)
    path = tmp_path / "refcoco" / "refs(unc).p"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: not a whole pickle"):
        open_benchmark(published(tmp_path, "refcoco"), "b")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"id": 11', '"id": 99', "annotation 11: missing, but"),
        ('"height": 48', '"h": 48', "entry 0: no 'height'"),
        ('"image_id": 1', '"image_id": 7', "annotation 11: no image 7"),
        ("[[8.0,", '[["a",', "annotation 11: 'segmentation' is no list of polygons"),
        ('"counts": [1536,', '"counts": [5,', "annotation 12: mask: run lengths add up"),
        ('"counts": [1536, 1536]', '"counts": "abc"', "compressed counts that end in the middle"),
        ('"segmentation"', '"s"', "no 'segmentation'"),
    ],
)
def test_broken_instances_are_one_line(tmp_path, old, new, said):
    published_sets.refcoco(tmp_path)
    path = tmp_path / "refcoco" / "instances.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=r"instances\.json: .*" + said) as caught:
        open_benchmark(published(tmp_path, "refcoco"), "b")
    assert "\n" not in str(caught.value)


def test_label_maps_come_with_their_images(tmp_path):
    names = published_sets.voc(tmp_path / "voc")
    rows = rows_of(open_benchmark(published(tmp_path / "voc", "voc20"), "b"))
    assert [row["url"].rpartition("/")[2] for row in rows] == [f"{name}.jpg" for name in names]
    values = [read_label_map(row["label_map"], row["url"]) for row in rows]
    assert [np.unique(value).tolist() for value in values] == [[1, 20, 255], [0, 2, 255]]
    names = published_sets.ade(tmp_path / "ade")
    rows = rows_of(open_benchmark(published(tmp_path / "ade", "ade150"), "b"))
    values = [read_label_map(row["label_map"], row["url"]) for row in rows]
    assert [np.unique(value).tolist() for value in values] == [[0, 150], [0, 1, 150]]


def test_faults_of_segmentation_sets_are_named(tmp_path):
    published_sets.voc(tmp_path / "voc")
    (tmp_path / "voc" / "SegmentationClass" / "2007_000042.png").unlink()
    config = published(tmp_path / "voc", "voc20").model_copy(update={"partial": False})
    with pytest.raises(DataError, match=r"1 files are missing, first .*2007_000042\.png"):
        open_benchmark(config, "b")
    published_sets.ade(tmp_path / "ade")
    path = tmp_path / "ade" / "objectInfo150.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"objectInfo150\.txt: 149 classes, 150 are due"):
        open_benchmark(published(tmp_path / "ade", "ade150"), "b")
    with pytest.raises(DataError, match=r"x\.jpg: its label map cannot be decoded"):
        read_label_map(b"no picture", "x.jpg")
    colours = io.BytesIO()
    Image.new("RGB", (4, 4)).save(colours, "png")
    with pytest.raises(DataError, match=r"x\.jpg: its label map has colours"):
        read_label_map(colours.getvalue(), "x.jpg")


def test_scores_of_segmentation_are_those_of_a_whole_confusion(checkpoint):
    """Counted image by image, equal to one confusion matrix of all pixels."""
    model = caft.load_model(checkpoint)
    names = ["red", "green", "blue"]
    measure = SegmentationMeasure([[f"a {name}", f"the {name}"] for name in names])
    texts = [text for name in names for text in (f"a {name}", f"the {name}")]
    classes = class_features(encode_sentences(model, texts), 3)
    confusion, rows, right = np.zeros((3, 3)), [], []
    rng = np.random.default_rng(0)
    for _ in range(3):
        image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        truth = rng.integers(0, 5, (5, 7), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        truth[0] = 255
        encoded = io.BytesIO()
        Image.fromarray(truth).save(encoded, "png")
        features = encode_one(model, image)
        rows.append(measure.rows(model, features, "x", encoded.getvalue(), "squash"))
        given = heat_maps(model, features, classes).argmax(0).astype(np.int32)
        given = cv2.resize(given, truth.shape[::-1], interpolation=cv2.INTER_NEAREST)
        counted = (truth >= 1) & (truth <= 3)
        np.add.at(confusion, (truth[counted] - 1, given[counted]), 1)
        levels = [labels[counted] for labels in caft.hierarchy(model, image)]
        right.append([achievable_segmentation_accuracy(each, truth[counted]) for each in levels])
    scores = measure.scores(np.concatenate(rows))
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    assert scores["semantic_miou"] == pytest.approx(np.mean(np.diag(confusion) / union))
    assert scores["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    found = [scores[f"achievable_{count}"] for count in model.config.image.segments]
    assert found == pytest.approx(np.mean(right, axis=0).tolist())
    assert found == sorted(found, reverse=True)  # nested levels: coarser ones can only lose


def test_an_image_without_a_counted_pixel_counts_for_nothing(checkpoint):
    model = caft.load_model(checkpoint)
    encoded = io.BytesIO()
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(encoded, "png")
    features = encode_one(model, np.zeros((32, 32, 3), np.uint8))
    assert (
        SegmentationMeasure([["a"]]).rows(model, features, "x", encoded.getvalue(), "squash").size
        == 0
    )


def test_the_stage_scores_references_and_segmentation(settings, tmp_path, ray_cluster, capsys):
    published_sets.refcoco(tmp_path / "refer")
    published_sets.voc(tmp_path / "voc")
    settings["benchmarks"] = [
        {"name": name, "set": name, "root": str(tmp_path / root), "partial": True}
        for name, root in (("refcoco", "refer"), ("voc20", "voc"))
    ]
    output = start(settings)
    found = json.loads((output / "metrics.json").read_text())["benchmarks"]
    model = caft.load_model(settings["checkpoint"])
    config = validate(EvaluateConfig, settings, "test").benchmarks[0]
    benchmark = open_benchmark(config, "b")
    ious, hits = [], []
    for row in rows_of(benchmark):
        image = decode_image(row["image"])
        for region in benchmark.regions[row["url"]]:
            heat = caft.localize(model, image, [region.text])[0]
            ious.append(mask_iou(binarise(heat), region.mask))
            hits.append(region.mask[heat == heat.max()].mean())
    assert found["refcoco"]["regions"] == len(ious) == 4
    assert found["refcoco"]["miou"] == pytest.approx(np.mean(ious))
    assert found["refcoco"]["precision_50"] == pytest.approx(np.mean(np.array(ious) >= 0.5))
    assert found["refcoco"]["pointing"] == pytest.approx(np.mean(hits))
    assert {"semantic_miou", "pixel_accuracy"} < set(found["voc20"])
    assert 0.5 < found["voc20"][f"achievable_{model.config.image.segments[0]}"] <= 1
    printed = capsys.readouterr().out
    assert "P@0.5" in printed
    assert "achievable" in printed
    before = (output / "metrics.json").read_bytes()
    shutil.rmtree(output)
    start(settings)  # from stored features
    again = json.loads((output / "metrics.json").read_text())["benchmarks"]
    assert again == json.loads(before)["benchmarks"]
