"""Kill -9 of workers, of raylets and of the driver at random steps, and nodes that come and go:
the loss curve and the weights are always those of the run that nothing disturbed."""

import os
import random
import re
import signal
from pathlib import Path

import pytest
import torch
from cluster_support import Nodes, training_workers
from mlflow import MlflowClient
from stage_support import drive, last_step
from tests_support import tiny_config

import caft
from caft.checkpoint import read_manifest
from caft.config import load_config
from pipelines.train.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# A kill of each kind; CAFT_KILLS=4,3,3 makes it ten.
KILLS = {
    kind: int(times)
    for kind, times in zip(
        ("workers", "raylets", "drivers"),
        os.environ.get("CAFT_KILLS", "1,1,1").split(","),
        strict=True,
    )
}
SEED = 20261
STEPS, SAVED_EVERY = 72, 3  # across the ends of epochs


@pytest.fixture(scope="module")
def nodes():
    cluster = Nodes(2)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def make_config(dataset_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures-tracking")

    def make(output, *overrides: str) -> TrainConfig:
        base = [
            f"dataset={dataset_folder}", f"output={output}", "global_batch=8", "block_size=4",
            "batch_norm_images=4", "epochs=3.8", "ingest.lanes=4", "ingest.window_steps=3",
            "ingest.extra_parts=1", "ingest.loaders_per_worker=1", "log_every_steps=1",
            "progress_every_s=0.01", f"checkpoint.every_steps={SAVED_EVERY}",
            "scaling.num_workers=2", "scaling.threads_per_worker=1", "scaling.max_failures=3",
            "scaling.cpus_per_worker=2",
            # Rounding is another one on another number of workers. Adam without an eps makes steps
            # out of it, and large steps let it decide which points are the farthest.
            "optimizer.warmup_steps=5", "optimizer.eps=1.0e-3", "optimizer.lr=1.0e-5",
            f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
        ]  # fmt: skip
        config = load_config(TrainConfig, None, [*base, *overrides])
        return config.model_copy(update={"model": tiny_config()})

    return make


@pytest.fixture(scope="module")
def undisturbed(nodes, make_config, tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("undisturbed")
    config = make_config(folder / "run")
    driver = drive(folder, config, nodes.address)
    assert driver.wait() == 0, driver.log
    return config


class Chance:
    """A random step in each of `times` equal shares of the run, the same ones at every test run."""

    def __init__(self, times: int, seed: int) -> None:
        self._random = random.Random(seed)
        share = (STEPS - SAVED_EVERY) // times
        self.steps = [n * share + self._random.randrange(1, share) for n in range(times)]

    def one_of(self, count: int) -> int:
        return self._random.randrange(count)


def reached(driver, step: int) -> bool:
    """Wait until the driver has said `step`; False if it ended before."""
    return driver.until(lambda: last_step(driver.log) >= step)


def assert_undisturbed(config: TrainConfig, undisturbed: TrainConfig) -> None:
    """Every step is there, has the loss that it had, and ends in the same weights."""
    ours, expected = curve(config), curve(undisturbed)
    assert sorted(ours) == sorted(expected) == list(range(1, STEPS + 1))
    for step, loss in expected.items():
        assert ours[step] == pytest.approx([loss[0]] * len(ours[step]), rel=1e-5), step
    weights = caft.load_model(f"{config.output}/final").state_dict()
    for name, tensor in caft.load_model(f"{undisturbed.output}/final").state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)


def curve(config: TrainConfig) -> dict[int, list[float]]:
    """The loss of each step; several times where a step was done again after a kill."""
    run_id = read_manifest(f"{config.output}/final")["mlflow_run_id"]
    losses: dict[int, list[float]] = {}
    for metric in MlflowClient(config.tracking.uri).get_metric_history(run_id, "loss/total"):
        losses.setdefault(metric.step, []).append(metric.value)
    return losses


def test_workers_and_drivers_are_killed(nodes, undisturbed, make_config, tmp_path):
    config = make_config(tmp_path / "run")
    kinds = ["workers"] * KILLS["workers"] + ["drivers"] * KILLS["drivers"]
    chance = Chance(len(kinds), SEED)
    driver, seen = drive(tmp_path, config, nodes.address), ""
    for step, kind in zip(chance.steps, kinds, strict=True):
        assert reached(driver, step), driver.log
        if not seen:
            second = drive(tmp_path, config, nodes.address)
            assert second.wait() == 2, second.log
            assert "is being written by train on " in second.log
        workers = training_workers()
        print(f"kill: one of {kind} at step {step}, {len(workers)} workers")
        if kind == "workers":
            workers[chance.one_of(len(workers))].kill()
            assert driver.until(lambda gone=workers: not any(one.is_running() for one in gone))
        else:
            driver.kill()
            seen += driver.log
            driver = drive(tmp_path, config, nodes.address)
    assert driver.wait() == 0, driver.log
    assert (seen + driver.log).count("the workers failed") == KILLS["workers"]
    assert_undisturbed(config, undisturbed)


def test_nodes_are_killed_announced_and_come(nodes, undisturbed, make_config, tmp_path):
    """With a raylet killed, training goes on with one worker; a node that comes makes it two; of a
    node that is announced to go away, and of an end that is asked for, a checkpoint is saved first
    of that very step."""
    config = make_config(tmp_path / "run", "scaling.num_workers=[1,2]", "scaling.grow_every_s=1")
    chance = Chance(KILLS["raylets"] + 1, SEED + 1)
    driver = drive(tmp_path, config, nodes.address)
    for step in chance.steps[:-1]:
        assert reached(driver, step), driver.log
        print(f"kill: a raylet at step {step}")
        workers, failures = training_workers(), driver.log.count("the workers failed")
        nodes.kill_raylet(workers[chance.one_of(len(workers))])
        assert driver.until(lambda n=failures: driver.log.count("the workers failed") > n)
        assert driver.until(lambda: len(training_workers()) == 1), driver.log
        nodes.add()
    failures, killed_at = driver.log.count("the workers failed"), last_step(driver.log)
    assert driver.until(lambda: "there is room for more workers; going on from" in driver.log)
    assert driver.until(lambda: len(training_workers()) == 2), driver.log

    nodes.announce_removal(within_s=60)
    assert driver.until(lambda: "a node is about to go away; going on from" in driver.log)
    nodes.remove()
    saved = newest(config)
    assert reached(driver, saved + 1), driver.log
    os.kill(driver.process.pid, signal.SIGTERM)
    assert driver.wait() == 130, driver.log
    assert "a checkpoint is saved first" in driver.log
    assert driver.log.count("the workers failed") == failures
    assert saved < newest(config) < STEPS

    nodes.add()
    driver = drive(tmp_path, config, nodes.address)
    assert driver.wait() == 0, driver.log
    again = [step for step, losses in curve(config).items() if len(losses) > 1]
    assert max(again, default=0) <= killed_at, "a step that was saved was done again"
    assert_undisturbed(config, undisturbed)


def test_workers_that_cannot_start_give_their_room_back(nodes, make_config, tmp_path):
    config = make_config(tmp_path / "run", "scaling.max_failures=1")
    driver = drive(tmp_path, config, nodes.address, GLOO_SOCKET_IFNAME="none0")
    assert driver.wait() != 0
    assert re.search("the workers failed .*none0.*, failure 1 of 1 since step 0", driver.log)
    assert "waiting for room" not in driver.log


def newest(config: TrainConfig) -> int:
    """The step of the newest checkpoint."""
    saved = Path(config.output, "checkpoints").glob("step-*")
    return max(int(path.name.removeprefix("step-")) for path in saved)
