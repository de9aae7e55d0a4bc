"""The stages: thin Ray programs that call `caft`, each run as `python -m pipelines.<stage>`."""

import os

from pipelines.environment import prepare

# Ray Data announces every execution on several lines and prints each exception's traceback twice;
# a stage's own progress and its last line say what matters.
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")

prepare()
