"""A reviewer with ten minutes: README's first commands in a fresh clone, on a smaller sample."""

import re
import time

import pytest
from mlflow_support import free_port
from user_support import User

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SMALLER = "--scenes 300 --test-scenes 40 --train epochs=1"


def test_the_first_ten_minutes(tmp_path):
    user = User(tmp_path)
    first, second = user.commands("README.md", "make demo")
    assert (first, second) == ("make demo", "make test")
    gcs, dashboard, agent, page, sample = (free_port() for _ in range(5))
    ports = f"--ray-ports {gcs} {dashboard} {agent} 10000 --mlflow-port {page}"
    demo = f'{first} DEMO="{SMALLER} {ports} --sample-port {sample}"'
    try:
        printed = user.run(demo, 1500)
        address = printed.index(f"MLflow is at http://127.0.0.1:{page}")
        assert address < printed.index("chain: data (1 of 3)")  # to watch curves, first of all
        assert re.search(r"^scenes +40 +whole", printed, re.M)
        assert "what to do next" in printed
        report = user.clone / "runs/demo/evaluate/report.html"
        assert "What to do next" in report.read_text()

        started = time.monotonic()
        again = user.run(demo)
        assert "demo: finished before" in again
        assert "ray job submit" not in again
        assert time.monotonic() - started < 120

        library = user.block("README.md", "caft.draw_panel", "python")
        photograph = next((user.clone / "pipelines/demo/photographs").glob("*.jpg"))
        (user.clone / "photo.jpg").write_bytes(photograph.read_bytes())
        (user.clone / "library.py").write_text(library)
        user.run("python library.py")
        assert (user.clone / "panel.webp").stat().st_size > 10_000
        assert "caft_b_3m" in user.run("python -m pipelines recipes")
        assert "parameters" in user.run("python -m caft.model describe caft_b")
    finally:
        stopped = user.run("python -m pipelines.demo clean")
    assert "stopped, and removed" in stopped
    assert not (user.clone / "runs/demo").exists()
