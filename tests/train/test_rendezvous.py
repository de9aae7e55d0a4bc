"""What listens while workers train on one machine, and who may read Ray's folder and its token."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from caft.errors import ClusterError
from pipelines.private import ray_folder

PROGRAM = """
import json, os, sys
import psutil, ray, torch
import torch.distributed as dist
from ray.train import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer
from pipelines.train.rendezvous import SharedInterface
from pipelines.workers import connect

def listening():
    found = psutil.Process().net_connections("tcp")
    return sorted({(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN})

def train(_):
    total = torch.ones(2)
    dist.all_reduce(total)
    assert total.tolist() == [2, 2]
    every = [None, None]
    dist.all_gather_object(every, (int(os.environ["MASTER_PORT"]), listening()))
    return every

connect()
trainer = TorchTrainer(train, train_loop_config={}, torch_config=SharedInterface(),
                       scaling_config=ScalingConfig(num_workers=2))
sockets = trainer.fit().return_value
session = ray._private.worker._global_node.get_session_dir_path()
print(json.dumps({"sockets": sockets, "session": session}))
"""


@pytest.fixture(scope="module")
def group():
    """Two workers of a cluster that `connect` started, in a home of their own."""
    with tempfile.TemporaryDirectory(prefix="caft-") as folder:
        own = {"HOME": folder, "RAY_TMPDIR": folder, "PYTHONPATH": str(Path.cwd())}
        own |= {"RAY_TRAIN_V2_ENABLED": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        foreign = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
        environment = {k: v for k, v in os.environ.items() if k not in foreign} | own
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, cwd=folder, text=True,
            capture_output=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield Path(folder), json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_the_workers_of_one_machine_meet_on_loopback_alone(group):
    _, found, _ = group
    port = found["sockets"][0][0]
    stores = [ip for _, sockets in found["sockets"] for ip, own in sockets if own == port]
    assert stores == ["127.0.0.1"]
    for _, sockets in found["sockets"]:
        open_to_all = [place for place in sockets if place[0] not in ("127.0.0.1", "::1")]
        assert len(open_to_all) == 1, sockets  # of Ray itself
        assert len(sockets) >= 2  # gloo's


def test_sessions_and_token_of_a_local_cluster_are_its_owners_alone(group):
    folder, found, errors = group
    private = folder / f"caft-{os.getuid()}"
    assert Path(found["session"]).is_relative_to(private)
    assert private.stat().st_mode & 0o777 == 0o700
    token = folder / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert "Token authentication" not in errors


def test_a_folder_of_somebody_else_holds_no_sessions(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(os, "getuid", lambda: 99_999_990)
    name = Path(f"/tmp/caft-{os.getuid()}")
    name.symlink_to(tmp_path)
    try:
        with pytest.raises(ClusterError, match="no folder of yours; set RAY_TMPDIR"):
            ray_folder()
    finally:
        name.unlink()
