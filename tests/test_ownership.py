"""Two actors on one output: the dead are replaced, the living are named, on a disk and on S3."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import pytest

from caft.errors import OwnedError
from pipelines import ownership, storage
from pipelines.ownership import CLAIM, owned
from pipelines.processes import start_time

HOLD = """
import sys, time
from pipelines.ownership import owned
with owned(sys.argv[1], "train"):
    print("owns", flush=True)
    time.sleep(100)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ownership, "DEAD_AFTER_S", 1.0)
    monkeypatch.setattr(ownership, "BEAT_EVERY_S", 0.2)
    monkeypatch.setattr(ownership, "LOOK_EVERY_S", 0.1)


def claim(place: str) -> dict:
    return storage.read_json(storage.join(place, CLAIM))


def forge(output: str, **changes) -> dict:
    """A claim that another process has left."""
    with owned(output, "train"):
        known = claim(output) | {"id": "other"} | changes
    storage.write_json(storage.join(output, CLAIM), known)
    return known


def test_a_live_owner_ends_the_second_start_with_one_line(place, capfd):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, place], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"owns\n"
    named = rf"written by train on \S+ \(process {holder.pid}\)"
    with pytest.raises(OwnedError, match=named) as e, owned(place, "train"):
        pass
    assert "\n" not in str(e.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with owned(place, "train"):
        assert claim(place)["pid"] != holder.pid
    assert "looks for" not in capfd.readouterr().err  # replaced at once
    assert not storage.exists(storage.join(place, CLAIM))


def test_a_number_that_another_process_has_now_is_no_owner(place):
    forge(place, started=1)
    with owned(place, "train"):
        assert claim(place)["id"] != "other"


def test_an_owner_elsewhere_is_replaced_once_it_is_silent(place, capfd):
    forge(place, place="another machine", host="node7")
    began = time.monotonic()
    with owned(place, "train"):
        assert time.monotonic() - began >= 1
    assert "last written by train on node7" in capfd.readouterr().err


def test_an_owner_elsewhere_that_lives_is_left_alone_or_waited_for(place):
    known = forge(place, place="another machine", host="node7")
    ended = threading.Event()

    def live() -> None:
        beat = 0
        while not ended.wait(0.1):
            beat += 1
            storage.write_json(storage.join(place, CLAIM), known | {"beat": beat})
        storage.delete_file(storage.join(place, CLAIM))

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(OwnedError, match="train on node7"), owned(place, "train"):
        pass
    threading.Timer(1.0, ended.set).start()
    with owned(place, "train", wait=True):
        assert ended.is_set()
    thread.join()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}', "x" * 1000])
def test_a_claim_that_cannot_be_read_is_replaced(text, place):
    storage.write_bytes(storage.join(place, CLAIM), text.encode())
    with owned(place, "train"):
        assert claim(place)["stage"] == "train"


def test_of_many_that_start_at_once_no_two_own(place):
    forge(place, started=1)
    start, inside, most = threading.Barrier(4), [], []

    def contend() -> bool:
        start.wait()
        try:
            with owned(place, "train"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.5)
                inside.pop()
        except OwnedError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        won = [future.result() for future in [pool.submit(contend) for _ in range(4)]]
    assert any(won)
    assert set(most) == {1}


def test_a_process_that_was_taken_for_dead_ends(place):
    def run() -> None:
        with owned(place, "train"):
            taken = claim(place) | {"id": "other", "host": "node7"}
            storage.write_json(storage.join(place, CLAIM), taken)
            time.sleep(5)

    with pytest.raises(OwnedError, match="was taken over by train on node7"):
        run()
    assert claim(place)["id"] == "other"


def test_an_output_that_cannot_be_written_needs_no_owner(tmp_path, monkeypatch):
    def refuse(path, value):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ownership, "_create", refuse)
    with owned(str(tmp_path), "train"):
        assert json.dumps([p.name for p in tmp_path.iterdir()]) == "[]"


@pytest.mark.parametrize("stage", ["data", "train", "evaluate"])
def test_the_second_start_of_a_stage_ends_before_anything_happens(stage, tmp_path, capfd):
    output = str(tmp_path / "out")
    main = import_module(f"pipelines.{stage}.__main__").main
    tracking = f"tracking.uri=sqlite:///{tmp_path}/a.db"
    argv = [f"configs/{stage}/demo.yaml", f"output={output}", tracking]
    forge(output, pid=os.getpid(), started=start_time(os.getpid()))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main(argv) == 2
    said = capfd.readouterr().err.strip()
    assert re.fullmatch(
        rf"OwnedError: {output}: is being written by train on .*; end that .*", said
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
