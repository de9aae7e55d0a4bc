"""Command line of the embed stage.
Run as `python -m pipelines.embed SOURCE checkpoint=... output=... [key=value ...]`, where SOURCE is
a dataset or any images that the data stage reads; or with a recipe in SOURCE's place."""

import sys

from pipelines.config import stage_main
from pipelines.embed.config import EmbedConfig
from pipelines.embed.stage import run

if __name__ == "__main__":
    sys.exit(stage_main(EmbedConfig, run, sys.argv[1:]))
