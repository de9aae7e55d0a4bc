"""Command line of the evaluate stage.
Run as `python -m pipelines.evaluate CONFIG [--check-data] [key=value ...]`, most often as a job."""

import sys

from pipelines.config import stage_main
from pipelines.evaluate.check_data import check_data
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.stage import run

if __name__ == "__main__":
    sys.exit(stage_main(EvaluateConfig, run, check_data=check_data))
