"""The way from a laptop to a RayCluster on Kubernetes: kubectl's tunnel, and the cluster's token.
Used by submit; whoever may read the token's secret and open the tunnel may submit jobs."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from caft.errors import ClusterError
from pipelines.submit.local_cluster import LOOPBACK

DASHBOARD = 8265
TOKEN_KEY = "auth_token"  # in the secret that KubeRay's operator makes for each cluster
OPEN_WITHIN_S, ANSWER_WITHIN_S = 30.0, 60.0


@contextmanager
def reached(name: str) -> Iterator[dict[str, str]]:
    """An environment for processes that speak to the RayCluster `name`, or `NAMESPACE/NAME`.

    Raises:
        ClusterError: kubectl is not installed, knows no such cluster, or may not reach it.
    """
    namespace, _, cluster = name.rpartition("/")
    if shutil.which("kubectl") is None:
        raise ClusterError(f"kuberay:{name}: kubectl is not installed; it opens the way")
    kubectl = ["kubectl", *(["--namespace", namespace] if namespace else [])]
    token = _token(kubectl, cluster)
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    forward = ["port-forward", "--address", LOOPBACK, f"service/{cluster}-head-svc"]
    tunnel = subprocess.Popen(
        [*kubectl, *forward, f"{port}:{DASHBOARD}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _wait_for(tunnel, port, name)
        yield os.environ | {
            "RAY_ADDRESS": f"http://{LOOPBACK}:{port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
        }
    finally:
        tunnel.terminate()
        tunnel.wait()


def _token(kubectl: list[str], cluster: str) -> str:
    ask = ["get", "secret", cluster, "--output", f"jsonpath={{.data.{TOKEN_KEY}}}"]
    try:
        answer = subprocess.run(
            [*kubectl, *ask], capture_output=True, text=True, timeout=ANSWER_WITHIN_S
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"kuberay:{cluster}: kubectl had no answer within a minute") from None
    if answer.returncode != 0 or not answer.stdout:
        why = _last_line(answer.stderr) or f"its secret has no {TOKEN_KEY}"
        raise ClusterError(f"kuberay:{cluster}: no token for this cluster: {why}")
    return base64.b64decode(answer.stdout).decode()


def _wait_for(tunnel: subprocess.Popen[str], port: int, name: str) -> None:
    deadline = time.monotonic() + OPEN_WITHIN_S
    while tunnel.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    tunnel.terminate()
    said = tunnel.stderr.read() if tunnel.stderr else ""
    raise ClusterError(f"kuberay:{name}: no way to its head: {_last_line(said) or 'no answer'}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
