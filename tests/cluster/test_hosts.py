"""Three machines with nothing in common but an S3 bucket and a tracking server: data, train and
evaluate as one chain, a machine lost in each stage, and one cut off the network for a minute."""

import re
import time

import pytest
from chain_support import Job, wait_for, write_chain
from hosts import require_namespaces
from mlflow import MlflowClient
from stage_support import S3_BUCKET, keys_of
from world import LISTS_AT, World, world

from pipelines.data.dataset import open_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CUT_S = 60.0
RUNS_AT = f"s3://{S3_BUCKET}/runs"


@pytest.fixture
def here(tmp_path) -> World:
    require_namespaces()
    with world(tmp_path) as here:
        yield here


def test_a_chain_outlives_lost_machines_and_a_cut_cable(here, tmp_path):
    _, one, two = here.hosts.hosts
    work = tmp_path / "work"
    write_chain(work, LISTS_AT, here.hosts.address, RUNS_AT)
    tracking = {"MLFLOW_TRACKING_URI": here.tracking_address}
    job = Job(work, here.hosts, here.variables | tracking)
    try:
        lost = job.busy([one, two], "ray::Map(")
        lost.kill()
        here.start(lost)

        job.until(lambda: job.step >= 6)
        lost = job.busy([one, two], "TrainWorker")
        lost.kill()
        job.until(lambda: job.log.count("the workers failed") == 1)
        here.start(lost)
        killed_at = job.step
        job.until(lambda: job.step > killed_at + 3)

        lost = job.busy([one, two], "TrainWorker")
        lost.cut()
        mended_at = time.monotonic() + CUT_S
        job.until(lambda: job.log.count("the workers failed") == 2)
        job.until(lambda: time.monotonic() > mended_at)
        lost.mend()
        wait_for(lambda: not lost.processes)  # it learns that it was given up, and ends
        here.start(lost)

        job.busy([one, two], "Encoder").kill()
        assert job.wait() == 0, job.log[-20_000:]
    finally:
        job.kill()
    assert "chain: finished: data, train, evaluate" in job.log
    assert_all_there(job, here.tracking_address)
    if here.database is not None:
        assert here.database.count("runs") == 3


def assert_all_there(job: Job, tracking: str) -> None:
    """Each row of the lists once, kept or rejected; the steps of training; the scores."""
    counts = open_dataset(f"{RUNS_AT}/data").manifest["counts"]
    keys = keys_of(f"{RUNS_AT}/data")
    assert len(set(keys)) == len(keys) == counts["kept"]
    assert counts["input_rows"] == counts["kept"] + sum(counts["rejected"].values())

    client = MlflowClient(tracking)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = {run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])}
    assert {stage: run.info.status for stage, run in runs.items()} == dict.fromkeys(
        ("data", "train", "evaluate"), "FINISHED"
    )
    losses = client.get_metric_history(runs["train"].info.run_id, "loss/total")
    last = int(re.findall(r"finished at step (\d+)", job.log)[0])
    assert {metric.step for metric in losses} == set(range(1, last + 1))
    assert 0 <= runs["evaluate"].data.metrics["scenes/whole_t2i_r1"] <= 1
    for stage, file in (("data", "stats.html"), ("evaluate", "report.html")):
        artifacts = {entry.path for entry in client.list_artifacts(runs[stage].info.run_id)}
        assert file in artifacts
