"""One line for every failure, out of whichever task or wrapper it comes."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import ray
from ray.train import ControllerError, WorkerGroupError

from caft.errors import ClusterError, ConfigError, DataError, UnexpectedError
from pipelines.config import command
from pipelines.evaluate.embed import TextEncoder, ray_data
from pipelines.failures import WHAT_TO_DO, located, one_voice, understood
from pipelines.progress import Progress
from pipelines.workers import run_tasks


class Unpicklable(Exception):
    """As libraries have them: it cannot be made again of its message alone."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}\nand more")
        self.lock = (value for value in ())  # generators do not travel


class OwnKind(DataError):
    """A kind of error that only one module knows."""


def fail(kind: str) -> None:
    raise {
        "value": ValueError("d"),
        "key": KeyError("captions"),
        "unpicklable": Unpicklable("no", "way"),
        "own": OwnKind("part-1.parquet: empty; make it again"),
        "config": ConfigError("seed: negative"),
        "assertion": AssertionError(),
    }[kind]


ENDINGS = [
    ("value", UnexpectedError, "ValueError: d"),
    ("key", UnexpectedError, "KeyError: 'captions'"),
    ("unpicklable", UnexpectedError, "Unpicklable: no way"),
    ("assertion", UnexpectedError, "AssertionError"),
]
KNOWN = [
    ("own", DataError, "part-1.parquet: empty; make it again"),
    ("config", ConfigError, "seed: negative"),
]


@pytest.mark.parametrize(("kind", "expected", "words"), [*ENDINGS, *KNOWN])
def test_a_stage_ends_in_one_line_with_the_last_frame_in_the_log(kind, expected, words, capsys):
    assert command(lambda: fail(kind)) == (1 if expected is UnexpectedError else 2)
    *log, line = capsys.readouterr().err.splitlines()
    if expected is UnexpectedError:
        assert line == f"UnexpectedError: {words}; {WHAT_TO_DO}"
        (frame,) = log
        assert "test_failures.py" in frame
        assert frame.endswith(", in fail")
    else:
        assert line.endswith(f": {words}")
        assert log == []


@pytest.mark.parametrize(("kind", "expected", "words"), [*ENDINGS, *KNOWN])
def test_a_failure_in_a_task_names_item_and_row(kind, expected, words, ray_cluster):
    def work(item):
        with located("row http://host/a.jpg"):
            fail(kind)

    with pytest.raises(expected) as caught:
        list(run_tasks("chunk", work, [7], 1, name=lambda n: f"{n} of 'web'"))
    if expected is UnexpectedError:
        words = f"chunk 7 of 'web': row http://host/a.jpg: {words}; {WHAT_TO_DO}"
    assert str(caught.value) == words


@pytest.mark.parametrize(("kind", "expected", "words"), [*ENDINGS, *KNOWN])
def test_plain_ray_tasks_and_actors_speak_alike(kind, expected, words, ray_cluster):
    @ray.remote
    class Actor:
        @one_voice("scoring")
        def work(self):
            fail(kind)

    with pytest.raises(expected) as caught, one_voice("benchmark"):
        ray.get(Actor.remote().work.remote())
    if expected is UnexpectedError:
        words = f"scoring: {words}; {WHAT_TO_DO}"
    assert str(caught.value) == words


def test_a_task_that_nothing_guards_is_one_line_all_the_same(ray_cluster):
    with pytest.raises(UnexpectedError) as caught, one_voice("benchmark"):
        ray.get(ray.remote(fail).remote("value"))
    assert str(caught.value) == f"benchmark: ValueError: d; {WHAT_TO_DO}"


def test_a_worker_that_is_lost_is_no_fault_of_the_program(ray_cluster):
    def die():
        import os

        os._exit(1)

    words = r"^benchmark: WorkerCrashedError: .*; see the workers"
    with pytest.raises(ClusterError, match=words), one_voice("benchmark"):
        ray.get(ray.remote(max_retries=0)(die).remote())


def broken_adapter():
    raise RuntimeError("these weights are of another size\nwith a long explanation")


def test_actors_of_an_evaluation_speak_alike(ray_cluster):
    items = [{"captions": json.dumps([["A dog."]])}]
    encoded = (
        ray_data()
        .from_items(items)
        .map_batches(
            TextEncoder,
            fn_constructor_args=("python:test_failures:broken_adapter", False),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
    )
    with pytest.raises(UnexpectedError) as caught, one_voice("benchmark"):
        list(encoded.iter_batches(batch_size=None))
    words = "RuntimeError: these weights are of another size"
    assert str(caught.value) == f"encoding captions: {words}; {WHAT_TO_DO}"


def test_of_several_workers_the_one_that_ended_the_others_is_named():
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    known = understood(WorkerGroupError("failed", {0: lost, 1: ValueError("d")}), "train")
    assert str(known) == f"train: ValueError: d; {WHAT_TO_DO}"
    own = understood(WorkerGroupError("failed", {0: lost, 1: DataError("key 3: torn")}), "train")
    assert (type(own), str(own)) == (DataError, "key 3: torn")
    placed = understood(ControllerError(ValueError("no such interface")), "train")
    assert str(placed) == f"train: ValueError: no such interface; {WHAT_TO_DO}"


def test_an_exception_from_another_process_keeps_its_array_free_words():
    error = ValueError(f"shape {np.zeros(3)}\nsecond line")
    assert str(understood(error)).startswith("ValueError: shape [0. 0. 0.]; run the same")


def test_the_first_estimate_of_the_time_left_waits_for_ten_steps(capsys):
    progress = Progress("train x", 100, "steps", every_s=0.0)
    for _ in range(10):
        progress.update(1)
    lines = capsys.readouterr().out.splitlines()
    assert all("ETA unknown" in line for line in lines[:9])
    assert "unknown" not in lines[9]


def test_a_stage_that_is_ended_by_sigterm_says_how_to_continue():
    program = (
        "import time\n"
        "from pipelines.config import command\n"
        "def call():\n"
        "    print('runs', flush=True)\n"
        "    time.sleep(100)\n"
        "raise SystemExit(command(call))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "runs\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said == "ended by SIGTERM; run the same command again to go on\n"
