"""What the tests of embedding and search share: a small model, images and their embedding."""

from pathlib import Path

import cv2
import pytest
from embed_support import write_checkpoint
from tests_support import tiny_config

from caft.config import LossConfig
from pipelines.demo.scenes import SceneConfig, render_scene


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), tiny_config())


@pytest.fixture(scope="session")
def checkpoint_without_parts(tmp_path_factory) -> Path:
    config = tiny_config(losses=LossConfig(parts=False))
    return write_checkpoint(tmp_path_factory.mktemp("no_parts"), config)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A folder of 40 scenes, two files that are no images, and captions beside none of them."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(40):
        scene = render_scene(number, SceneConfig())
        cv2.imwrite(str(folder / f"{number:03d}.png"), scene.image[..., ::-1])
    (folder / "020-cut.png").write_bytes((folder / "020.png").read_bytes()[:200])
    (folder / "030-page.jpg").write_bytes(b"<html>not found</html>")
    return folder


@pytest.fixture
def settings(scenes, checkpoint, tracking, tmp_path):
    """A configuration of the stage as a mapping; tests change what they are about."""
    return {
        "source": {"path": str(scenes)},
        "checkpoint": str(checkpoint),
        "output": str(tmp_path / "embedding"),
        "chunk_rows": 15,
        "batch_size": 4,
        "tracking": tracking.model_dump(),
    }
