"""The embed stage: every row counted, the model's own features, killed and resumed, bad input."""

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from embed_support import config_of
from mlflow import MlflowClient

import caft
from pipelines.embed.embedding import open_embedding
from pipelines.embed.stage import run


def table_of(folder):
    return pq.read_table(sorted(folder.glob("part-*.parquet")))


def test_a_folder_without_captions_is_embedded_and_counted(
    ray_cluster, settings, scenes, checkpoint, tmp_path, tracking
):
    run(config_of(settings, fine=True))
    embedding = open_embedding(settings["output"])
    assert embedding.manifest["counts"] == {
        "input_rows": 42,
        "kept": 40,
        "rejected": {"not_an_image": 1, "truncated_image": 1},
    }
    output = tmp_path / "embedding"
    table = table_of(output)
    assert table["url"].to_pylist() == [str(scenes / f"{n:03d}.png") for n in range(40)]
    assert len(set(table["key"].to_pylist())) == 40
    model = caft.load_model(checkpoint)
    with torch.inference_mode():
        features = model.encode_image([str(scenes / "007.png")])
    row = embedding.take([7], ["fine", "url"])[0]
    assert np.allclose(row["fine"], features.fine[0].numpy(), atol=2e-3)
    whole = F.normalize(features.whole[0], dim=-1).numpy()
    assert np.allclose(embedding.whole[7], whole, atol=1e-3)
    assert embedding.whole.dtype == np.float16
    rejects = pq.read_table(output / "rejects").to_pylist()
    assert sorted(row["url"].rpartition("/")[2] for row in rejects) == [
        "020-cut.png",
        "030-page.jpg",
    ]
    assert not (output / "work").exists()
    client = MlflowClient(tracking.uri)
    logged = client.get_run(embedding.manifest["mlflow_run_id"])
    assert logged.data.metrics["kept"] == 40
    assert logged.data.metrics["rejected/not_an_image"] == 1
    assert logged.data.tags["stage"] == "embed"
