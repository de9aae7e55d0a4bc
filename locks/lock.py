"""Writes what `make` and the image install, as files that name each package by version and hashes:
`python locks/lock.py`, with uv in PATH. The versions are those of constraints.txt. torch and
torchvision are in none of the files: they come by their versions alone, from whatever index has the
build for a machine.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
SETS = {
    "make": ("docs", "pipelines", "test"),
    "image": ("cluster", "language", "open-clip", "pipelines", "transformers"),
    "image-cuda": ("cluster", "gpu", "language", "open-clip", "pipelines", "transformers"),
}
BUILDS = "hatchling\neditables"  # of this project, in the environment that it is installed into
WITH_TORCH = re.compile(r"(torch|torchvision|triton|cuda-\w+|nvidia-(?!ml-py)[\w-]+)==")
PYTHON = "3.11.5"


def main() -> None:
    for name, extras in SETS.items():
        with tempfile.NamedTemporaryFile("w", suffix=".in") as more:
            more.write(BUILDS)
            more.flush()
            command = ["uv", "pip", "compile", str(ROOT / "pyproject.toml"), more.name]
            command += [f"--extra={extra}" for extra in extras]
            command += ["-c", str(ROOT / "constraints.txt"), "--generate-hashes", "--quiet"]
            command += ["--python-version", PYTHON, "--no-header", "--no-annotate", "--universal"]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        kept = [entry for entry in re.split(r"\n(?=\S)", text) if not WITH_TORCH.match(entry)]
        words = (
            f"# Made by locks/lock.py: extras {', '.join(extras)}. Without torch, torchvision.\n"
        )
        (HERE / f"{name}.txt").write_text(words + "\n".join(kept).rstrip() + "\n")


if __name__ == "__main__":
    main()
