"""A whole scaling study on drawn scenes: planned, run, its laws fitted, the largest run predicted.

Draws hard scenes as a dataset, then runs the sweep stage as anybody would. Taken up again where it
was left when run again with the same folder.

    python benchmarks/scaling_study.py --folder runs/scenes
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from scene_files import write_scenes

from caft.config import load_model_config

CONFIG = Path(__file__).parents[1] / "configs" / "sweep" / "scenes.yaml"
TRAIN_SCENES, TEST_SCENES = 16_000, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/scenes"))
    args, more = parser.parse_known_args()
    folder = args.folder.resolve()
    data = folder / "data"
    if not (data / "manifest.json").exists():
        data.mkdir(parents=True, exist_ok=True)
        write_scenes(data, TRAIN_SCENES, load_model_config("caft_xs"), TEST_SCENES)
    paths = [
        f"output={folder / 'sweep'}", f"train_set.0=dataset={data}",
        f"evaluate_set=[benchmarks.0.dataset={data}]", f"tracking.uri=sqlite:///{folder}/mlflow.db",
    ]  # fmt: skip
    started = time.monotonic()
    for command in ("run",):
        subprocess.run(
            [sys.executable, "-m", "pipelines.sweep", command, str(CONFIG), *paths, *more],
            check=True,
        )
    cores = len(os.sched_getaffinity(0))
    print(f"\n{time.monotonic() - started:,.0f} s on {cores} CPU cores")


if __name__ == "__main__":
    main()
