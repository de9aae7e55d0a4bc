"""The stages: thin Ray programs that call `caft`, each run as `python -m pipelines.<stage>`."""

import os

# Ray Data announces every execution on several lines; a stage's own progress says what matters.
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
