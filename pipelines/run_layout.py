"""Names in the output of a training run, for the stages that build on it too."""

CHECKPOINTS, FINAL, STEP = "checkpoints", "final", "step-"
RUN, RESULT, CONFIG_COPY = "run.json", "train.json", "train.yaml"
AVERAGE = "average.safetensors"  # in a training state: averaged weights
UNSENT = "unsent.jsonl"  # in a training state: events that MLflow had not got by then
