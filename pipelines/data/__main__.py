"""Command line of the data stage.
Run as `python -m pipelines.data CONFIG [key=value ...]`, most often as a Ray job."""

import sys

from pipelines.config import stage_main
from pipelines.data.config import DataConfig
from pipelines.data.stage import run

if __name__ == "__main__":
    sys.exit(stage_main(DataConfig, run))
