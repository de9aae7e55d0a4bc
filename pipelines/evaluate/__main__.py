"""Command line of the evaluate stage.
Run as `python -m pipelines.evaluate CONFIG [--check-data] [key=value ...]`, most often as a job; or
as `python -m pipelines.evaluate compare RUN_OR_OUTPUT ...` over what such runs left."""

import sys

from pipelines.config import stage_main
from pipelines.evaluate import compare
from pipelines.evaluate.check_data import check_data
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.stage import run

if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        sys.exit(compare.main(sys.argv[2:]))
    sys.exit(stage_main(EvaluateConfig, run, check_data=check_data))
