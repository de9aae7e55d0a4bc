"""Command line of the evaluate stage.
Run as `python -m pipelines.evaluate CONFIG [--check-data] [key=value ...]`, most often as a job; or
as `python -m pipelines.evaluate compare RUN_OR_OUTPUT ...` over what such runs left."""

import sys
from collections.abc import Sequence

from pipelines.config import stage_main
from pipelines.evaluate import compare
from pipelines.evaluate.check_data import check_data
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.stage import run


def main(argv: Sequence[str]) -> int:
    """Console entry."""
    if argv[:1] == ["compare"]:
        return compare.main(argv[1:])
    return stage_main(EvaluateConfig, run, list(argv), check_data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
