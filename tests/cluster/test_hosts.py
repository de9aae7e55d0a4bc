"""Three machines with nothing in common but an S3 bucket and a tracking server: data, train and
evaluate as one chain, a machine lost in each stage, and one cut off the network for a minute."""

import logging
import re
import threading
import time
from pathlib import Path

import pytest
from chain_support import Job, answers, wait_for, write_chain
from hosts import Hosts, require_namespaces
from mlflow import MlflowClient
from mlflow_support import free_port, start_server
from moto.server import ThreadedMotoServer
from postgres_support import PostgreSQL, postgresql_programs
from stage_support import S3_BUCKET, keys_of, s3_environment

from pipelines import storage
from pipelines.data.dataset import open_dataset
from pipelines.demo.sample import LISTS, write_sample
from pipelines.demo.server import SampleHandler, SampleServer

pytestmark = pytest.mark.timeout(900)
CUT_S = 60.0
LISTS_AT, RUNS_AT = f"s3://{S3_BUCKET}/lists", f"s3://{S3_BUCKET}/runs"


@pytest.fixture
def hosts(tmp_path):
    require_namespaces()
    hosts = Hosts(tmp_path, ("head", "one", "two"))
    yield hosts
    hosts.close()


@pytest.fixture
def bucket(hosts, monkeypatch) -> dict[str, str]:
    """The variables that lead to a real S3 server which every host reaches."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server = ThreadedMotoServer(ip_address=hosts.address, port=0)
    server.start()
    yield s3_environment(monkeypatch, "http://{}:{}".format(*server.get_host_and_port()))
    server.stop()


@pytest.fixture
def database():
    """PostgreSQL where it is installed; else None."""
    programs = postgresql_programs()
    server = PostgreSQL(programs) if programs else None
    yield server
    if server:
        server.stop()


@pytest.fixture
def tracking(hosts, database, bucket, tmp_path) -> str:
    """A tracking server's address; its runs are in the database, its artifacts in the bucket."""
    port = free_port()
    server = start_server(
        tmp_path, port, f"--allowed-hosts={hosts.address}:{port},localhost:*,127.0.0.1:*",
        host=hosts.address, database=database and database.url,
        artifacts=f"s3://{S3_BUCKET}/artifacts",
    )  # fmt: skip
    yield f"http://{hosts.address}:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def lists(hosts, bucket, tmp_path) -> str:
    """The sample's lists in the bucket; its images on a web server."""
    sample = tmp_path / "sample"
    server = SampleServer((hosts.address, 0), lambda *a: SampleHandler(*a, directory=str(sample)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_sample(sample, f"http://{hosts.address}:{server.server_port}", 96, 24)
    for name in LISTS:
        storage.upload(sample / f"{name}.csv", f"{LISTS_AT}/{name}.csv")
    yield LISTS_AT
    server.shutdown()


@pytest.fixture
def work(hosts, lists, tmp_path) -> Path:
    """A working directory with a chain of stages in it."""
    folder = tmp_path / "work"
    write_chain(folder, lists, hosts.address, RUNS_AT)
    return folder


def test_a_chain_outlives_lost_machines_and_a_cut_cable(
    hosts, bucket, tracking, database, work, tmp_path
):
    head, one, two = hosts.hosts
    hosts.start(head, bucket, cpus=1)
    wait_for(lambda: answers(hosts.dashboard))
    for host in (one, two):
        hosts.start(host, bucket, cpus=2)
    job = Job(work, hosts, bucket | {"MLFLOW_TRACKING_URI": tracking})
    try:
        lost = job.busy([one, two], "ray::Map(")
        lost.kill()
        hosts.start(lost, bucket, cpus=2)

        job.until(lambda: job.step >= 6)
        lost = job.busy([one, two], "TrainWorker")
        lost.kill()
        job.until(lambda: job.log.count("the workers failed") == 1)
        hosts.start(lost, bucket, cpus=2)
        killed_at = job.step
        job.until(lambda: job.step > killed_at + 3)

        lost = job.busy([one, two], "TrainWorker")
        lost.cut()
        mended_at = time.monotonic() + CUT_S
        job.until(lambda: job.log.count("the workers failed") == 2)
        job.until(lambda: time.monotonic() > mended_at)
        lost.mend()
        wait_for(lambda: not lost.processes)  # it learns that it was given up, and ends
        hosts.start(lost, bucket, cpus=2)

        job.busy([one, two], "Encoder").kill()
        assert job.wait() == 0, job.log[-20_000:]
    finally:
        job.kill()
    assert "chain: finished: data, train, evaluate" in job.log
    assert_all_there(job, tracking)
    if database is not None:
        assert database.count("runs") == 3


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
