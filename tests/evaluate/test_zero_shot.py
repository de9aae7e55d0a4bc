"""Labelled images in published layouts, and their classification by the texts of classes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from evaluate_support import start
from published_sets import write_image

import caft
from caft.captions import even_chunks
from caft.config import validate
from caft.errors import ConfigError, DataError
from pipelines.evaluate.config import EvaluateConfig, LabelledConfig
from pipelines.evaluate.opening import open_benchmark

TEMPLATES = ("a photo of a {}.", "a drawing of the {}.")
WORDNET = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}


@pytest.fixture
def imagenet(tmp_path):
    """Two classes of ImageNet in its layout, with a file that is no image."""
    root = tmp_path / "val"
    for label, folder in enumerate(WORDNET):
        for n in range(2 + label):
            write_image(root / folder / f"ILSVRC2012_val_{n}.JPEG.png", 10 * label + n)
        (root / folder / "readme.txt").write_text("no image")
    return root


def labelled(path, **more):
    return LabelledConfig(name="it", labelled=str(path), templates=TEMPLATES, **more)


def class_names(benchmark):
    return [
        texts[0].removeprefix("a photo of a ").rstrip(".") for texts in benchmark.classes.prompts
    ]


def test_folders_are_classes_by_name(tmp_path, imagenet):
    benchmark = open_benchmark(labelled(imagenet), "benchmarks.0")
    assert benchmark.classes.labels == (0, 0, 1, 1, 1)
    assert class_names(benchmark) == list(WORDNET)
    rows = [row for piece in benchmark.pieces for row in benchmark.rows.read(piece)]
    assert [row["url"] for row in rows] == list(benchmark.urls)
    write_image(tmp_path / "more" / "acoustic_guitar" / "a.jpg", 0)
    assert class_names(open_benchmark(labelled(tmp_path / "more"), "b")) == ["acoustic guitar"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("LOC_synset_mapping.txt", "".join(f"{k} {v}\n" for k, v in sorted(WORDNET.items())[::-1])),
        (
            "imagenet_class_index.json",
            json.dumps({"1": ["n01443537", "goldfish"], "0": ["n01440764", "tench"]}),
        ),
        ("names.json", json.dumps({k: v.partition(",")[0] for k, v in WORDNET.items()})),
        ("names.json", json.dumps(["tench", "goldfish"])),
        ("names.txt", "tench\ngoldfish\n"),
    ],
)
def test_class_names_are_read_from_the_files_there_are(tmp_path, imagenet, file, text):
    (tmp_path / file).write_text(text)
    config = labelled(imagenet, class_names=str(tmp_path / file))
    assert class_names(open_benchmark(config, "b")) == ["tench", "goldfish"]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("names.txt", "tench\n", "1 class names for 2 classes"),
        ("names.json", '{"n01440764": "tench"}', "no name for 1 classes, first 'n01443537'"),
        ("names.json", "3", "neither a list nor an object"),
        ("names.json", "{", "not valid JSON"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path, imagenet, file, text, said):
    (tmp_path / file).write_text(text)
    config = labelled(imagenet, class_names=str(tmp_path / file))
    with pytest.raises(DataError, match=rf"{file}: .*{said}"):
        open_benchmark(config, "b")


def hugging_face(path, labels, names=None):
    """A Parquet file as the `datasets` library writes one."""
    images = []
    for n in range(len(labels)):
        write_image(path.parent / f"{n}.png", n)
        images.append({"bytes": (path.parent / f"{n}.png").read_bytes(), "path": f"{n}.png"})
    table = pa.table({"image": images, "label": labels})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        known = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": known})
    pq.write_table(table, path, row_group_size=2)


def test_parquet_of_hugging_face_holds_images_labels_and_names(tmp_path):
    hugging_face(tmp_path / "test-00000.parquet", [1, 0, 1], ["cat", "dog"])
    benchmark = open_benchmark(labelled(tmp_path), "b")
    assert benchmark.classes.labels == (1, 0, 1)
    assert class_names(benchmark) == ["cat", "dog"]
    rows = [row for piece in benchmark.pieces for row in benchmark.rows.read(piece)]
    assert [row["image"] for row in rows] == [
        (tmp_path / f"{n}.png").read_bytes() for n in range(3)
    ]
    assert [row["url"] for row in rows] == list(benchmark.urls)


def test_parquet_labels_may_be_names(tmp_path):
    hugging_face(tmp_path / "it.parquet", ["dog", "cat", "dog"])
    benchmark = open_benchmark(labelled(tmp_path / "it.parquet"), "b")
    assert (benchmark.classes.labels, class_names(benchmark)) == ((1, 0, 1), ["cat", "dog"])


def test_faults_of_labelled_images_are_one_clear_line(tmp_path):
    with pytest.raises(DataError, match=r"empty: neither folders .* nor Parquet.*b\.labelled"):
        open_benchmark(labelled(tmp_path / "empty"), "b")
    write_image(tmp_path / "folders" / "cat" / "1.jpg", 0)
    with pytest.raises(DataError, match=r"folders: 1 images, b\.count is 50,000"):
        open_benchmark(labelled(tmp_path / "folders", count=50_000), "b")
    hugging_face(tmp_path / "it.parquet", [0, 1])
    with pytest.raises(DataError, match="indices without names; set class_names"):
        open_benchmark(labelled(tmp_path / "it.parquet"), "b")
    with pytest.raises(DataError, match="no column 'fine_label', there are image, label"):
        open_benchmark(labelled(tmp_path / "it.parquet", label_column="fine_label"), "b")
    hugging_face(tmp_path / "few.parquet", [0, 2], ["cat", "dog"])
    with pytest.raises(DataError, match="label 2 has no name among 2"):
        open_benchmark(labelled(tmp_path / "few.parquet"), "b")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"broken\.parquet: not Parquet"):
        open_benchmark(labelled(tmp_path / "broken.parquet"), "b")


def test_a_template_without_a_place_for_the_name_is_refused(settings):
    settings["benchmarks"] = [{"name": "it", "labelled": "x", "templates": ["a photo"]}]
    with pytest.raises(ConfigError, match=r"benchmarks\.0\.templates.*'a photo' has no {}"):
        validate(EvaluateConfig, settings, "evaluate.yaml")


def test_the_stage_classifies_as_plain_calls_do(settings, imagenet, ray_cluster, capsys):
    settings["benchmarks"] = [
        {"name": "fish", "labelled": str(imagenet), "templates": list(TEMPLATES)}
    ]
    output = start(settings)
    found = json.loads((output / "metrics.json").read_text())["benchmarks"]["fish"]
    model = caft.load_model(settings["checkpoint"])
    benchmark = open_benchmark(validate(EvaluateConfig, settings, "test").benchmarks[0], "b")
    rows = [row for piece in benchmark.pieces for row in benchmark.rows.read(piece)]
    with torch.inference_mode():
        images = model.encode_image(torch.stack([model.preprocess(r["image"]) for r in rows]))
        texts = []
        for prompts in benchmark.classes.prompts:
            chunks = [chunk for prompt in prompts for chunk in even_chunks([prompt], 4)]
            features = model.encode_text(model.tokenize(chunks).view(len(prompts), 4, -1))
            texts.append(
                (
                    F.normalize(features.parts, dim=-1).mean(0),
                    F.normalize(features.whole, dim=-1).mean(0),
                )
            )
        parts, whole = (torch.stack(tensors) for tensors in zip(*texts, strict=True))
        features = type(features)(parts, whole)
        scores = model.score(images, features, 0.3)
    labels = torch.tensor(benchmark.classes.labels)
    assert found["blended_top1"] == pytest.approx(
        (scores.argmax(1) == labels).double().mean().item()
    )
    assert found["blended_top5"] == 1
    assert (found["images"], found["classes"]) == (5, 2)
    printed = capsys.readouterr().out
    assert "mean per class" in printed
    assert "T2I R@1" not in printed
    rows = (output / "metrics.csv").read_text().splitlines()
    assert any(",fish,as written,blended,mean_per_class," in row for row in rows)
