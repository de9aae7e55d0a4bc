"""Names in the output of a training run, for the stages that build on it too."""

CHECKPOINTS, FINAL, STEP = "checkpoints", "final", "step-"
RUN, RESULT, CONFIG_COPY = "run.json", "train.json", "train.yaml"
