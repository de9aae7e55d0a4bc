"""The table in the log: every number in its column, whatever the benchmarks are called."""

from pipelines.evaluate.results import table


def metrics(value, **more):
    recalls = {
        f"{score}_{way}_r{k}": value
        for score in ("whole", "blended")
        for way in ("t2i", "i2t")
        for k in (1, 5, 10)
    }
    return {"images": 1234.0, **recalls, **more}


def test_every_recall_is_shown_in_per_cent_and_columns_line_up():
    located = {"regions": 3000.0, "miou": 0.301, "oiou": 0.2, "precision_50": 0.4} | {
        "pointing": 0.55,
        "centre_box_miou": 0.1,
        "centre_box_oiou": 0.05,
    }
    text = table({"scenes": metrics(1.0, **located), "a_long_benchmark-name": metrics(0.123)})
    recalls, overlaps = (part.splitlines() for part in text.split("\n\n"))
    assert len(recalls) == 5
    assert {len(line) for line in recalls} == {len(recalls[0])}
    assert recalls[1].split() == ["scenes", "1,234", "whole", *["100.0"] * 6]
    assert recalls[4].split() == ["blended", *["12.3"] * 6]
    more = ["40.0", "55.0", "10.0", "5.0"]
    assert overlaps[1].split() == ["scenes", "3,000", "30.1", "20.0", *more]
    assert len(overlaps) == 2


def test_without_regions_there_is_no_second_table():
    assert "mIoU" not in table({"scenes": metrics(0.5)})


def test_controls_and_weights_have_tables_of_their_own():
    recalls = {f"{way}_r{k}": 0.25 for way in ("t2i", "i2t") for k in (1, 5, 10)}
    more = {"controls": {"noisy_0.5": recalls}, "alphas": {"0.1": recalls, "1": recalls}}
    _, alphas, controls = (
        part.splitlines() for part in table({"scenes": metrics(1.0, **more)}).split("\n\n")
    )
    assert [line.split() for line in alphas[1:]] == [
        ["scenes", "0.1", *["25.0"] * 6],
        ["scenes", "1", *["25.0"] * 6],
    ]
    assert controls[1].split() == ["scenes", "noisy_0.5", *["25.0"] * 6]
    assert len({len(line) for line in controls}) == 1


def test_classification_and_segmentation_have_tables_without_retrieval():
    classified = {"images": 50_000.0, "classes": 1000.0} | {
        f"{kind}_{key}": value
        for kind, value in (("whole", 0.5), ("blended", 0.625))
        for key in ("top1", "top5", "mean_per_class")
    }
    segmented = {"images": 1449.0, "semantic_miou": 0.25, "pixel_accuracy": 0.5}
    segmented |= {f"achievable_{n}": value for n, value in ((16, 0.7), (64, 0.9), (32, 0.8))}
    text = table({"voc20": segmented, "imagenet": classified})
    pixels, classes = (part.splitlines() for part in text.split("\n\n"))
    assert pixels[1].split()[:4] == ["voc20", "1,449", "25.0", "50.0"]
    assert pixels[1].endswith("90.0 of 64, 80.0 of 32, 70.0 of 16")
    assert [line.split()[-4:] for line in classes[1:]] == [
        ["whole", *["50.0"] * 3],
        ["blended", *["62.5"] * 3],
    ]
    assert len({len(line) for line in classes}) == 1
