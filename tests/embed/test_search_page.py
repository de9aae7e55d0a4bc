"""The page on search: its commands, one after the other, on a small model and small data."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "search.md"


def commands():
    """Those that need no cluster."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("caft embed", "caft search"))]


def test_the_commands_of_the_page(dataset_folder, checkpoint, scenes, tmp_path):
    demo = tmp_path / "runs" / "demo"
    (demo / "train").mkdir(parents=True)
    (demo / "data").symlink_to(dataset_folder)
    (demo / "train" / "final").symlink_to(checkpoint)
    shutil.copy(scenes / "000.png", demo / "query.jpg")
    (tmp_path / "pipelines" / "demo").mkdir(parents=True)
    photographs = tmp_path / "pipelines" / "demo" / "photographs"
    photographs.symlink_to(ROOT / "pipelines" / "demo" / "photographs")
    environment = os.environ | {"HOME": str(tmp_path)}
    found = commands()
    assert len(found) == 5
    for line in found:
        program = [sys.executable, "-m", "pipelines", *shlex.split(line)[1:]]
        ended = subprocess.run(
            program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
        )
        assert ended.returncode == 0, (line, ended.stderr)
    assert "heat map" in (tmp_path / "search.html").read_text()
    assert (demo / "like.html").exists()
    count = len(list(photographs.glob("*.jpg")))
    assert f"{count:,} images in" in ended.stdout
