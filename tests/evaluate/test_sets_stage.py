"""The stage on published sets: numbers equal those of plain calls, and missing sets stop it."""

import json

import published_sets
import pytest
import torch
from evaluate_support import start

import caft
from caft.captions import even_chunks, split_sentences
from caft.errors import DataError
from caft.metrics import retrieval_recall


def of_set(name, root, **more):
    return {"name": name, "set": name, "root": str(root), "partial": True, **more}


@pytest.mark.slow
def test_a_set_with_several_captions_an_image_gives_the_numbers_of_plain_calls(
    settings, tmp_path, ray_cluster, capsys
):
    expected = published_sets.coco(tmp_path / "coco")
    settings["benchmarks"] = [of_set("coco", tmp_path / "coco")]
    results = json.loads((start(settings) / "metrics.json").read_text())["benchmarks"]["coco"]
    model = caft.load_model(settings["checkpoint"])
    paths = [tmp_path / "coco" / name for name, _ in expected]
    texts = [(n, text) for n, (_, captions) in enumerate(expected) for text in captions]
    with torch.inference_mode():
        pixels = torch.stack([model.preprocess(path) for path in paths])
        chunks = [c for _, text in texts for c in even_chunks(split_sentences(text), 4)]
        scores = model.score(
            model.encode_image(pixels),
            model.encode_text(model.tokenize(chunks).view(len(texts), 4, -1)),
            0.3,
        )
    assert (results["images"], results["texts"]) == (2, 10)
    for key, value in retrieval_recall(scores, [n for n, _ in texts]).items():
        assert results[f"blended_{key}"] == pytest.approx(value, abs=1e-6), key
    printed = capsys.readouterr().out
    assert "evaluate: coco is partial: 2 images are listed, 5,000 were published" in printed
    assert f"report: {settings['output']}/report.html" in printed


def test_a_missing_set_stops_all_before_any_work_or_is_left_out_on_request(
    settings, tmp_path, ray_cluster, capsys
):
    published_sets.urban(tmp_path / "urban")
    missing = of_set("dci", tmp_path / "nowhere")
    settings["benchmarks"] = [missing, of_set("urban_1k", tmp_path / "urban")]
    with pytest.raises(DataError, match=r"benchmarks\.0 'dci': .*nowhere: has no splits\.json"):
        start(settings)
    assert not list(tmp_path.glob("output/*"))
    output = start(settings | {"allow_missing": True})
    results = json.loads((output / "metrics.json").read_text())["benchmarks"]
    assert list(results) == ["urban_1k"]
    assert "evaluate: left out: benchmarks.0 'dci': " in capsys.readouterr().out
    settings["benchmarks"] = [missing]
    with pytest.raises(DataError, match="nowhere"):  # nothing would be left
        start(settings | {"allow_missing": True})
