"""A worker without a usable GPU says in one line which driver meets which wheel, and the fix."""

import re

import pytest

from pipelines.train.gpu import cuda_problem, network_problem

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\nGCC 12\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:20:51 UTC 2025\n"


@pytest.mark.parametrize(
    ("cuda", "driver", "says"),
    [
        (None, None, "built without CUDA; install a wheel"),
        ("13.0", None, "finds no NVIDIA driver on this node"),
        (
            "13.0",
            OPEN,
            r"driver 570\.86\.10 .*too old for torch 2\.13\.0 for CUDA 13\.0.*needs 580",
        ),
        ("12.8", OPEN, r"does not start with driver 570\.86\.10; .*LD_LIBRARY_PATH="),
        ("13.0", CLOSED, r"does not start with driver 580\.65\.06"),
    ],
)
def test_the_line_names_driver_wheel_and_fix(cuda, driver, says):
    assert re.search(says, cuda_problem("2.13.0", cuda, driver))


def test_workers_on_several_machines_without_a_fast_network_are_named(tmp_path):
    nothing = tmp_path / "infiniband"
    assert network_problem(8, 8, nothing) is None
    assert network_problem(16, 8, tmp_path) is None
    assert "over TCP; cluster/README.md says how" in network_problem(16, 8, nothing)
