"""What the environment keeps secret is in no file, log line or MLflow run of a stage."""

from pathlib import Path

from sources_support import image_bytes

from pipelines.data.config import SourceConfig
from pipelines.data.stage import run

SECRET = "hunter2-and-more"
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
)


def test_a_stage_leaves_no_secret_of_the_environment(
    ray_cluster, make_data_config, tmp_path, monkeypatch, capfd
):
    for variable in VARIABLES:
        monkeypatch.setenv(variable, f"{SECRET}-{variable}")
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(image_bytes(0, 48))
    (images / "a.txt").write_text("A dog. A cat runs.")
    (images / "b.png").write_bytes(b"no image")
    (images / "b.txt").write_text("A bird. It flies.")
    config = make_data_config(str(tmp_path / "out"))
    run(config.model_copy(update={"sources": (SourceConfig(name="a", path=str(images)),)}))
    printed = "".join(capfd.readouterr())
    assert "kept 1 + rejected 1" in printed
    assert SECRET not in printed
    tracked = Path(config.tracking.uri.removeprefix("sqlite:///")).parent
    files = [file for root in (config.output, tracked) for file in Path(root).rglob("*.*")]
    assert {"manifest.json", "data.yaml", "stats.html", "mlflow.db"} <= {f.name for f in files}
    assert not [file for file in files if file.is_file() and SECRET.encode() in file.read_bytes()]
