"""Rankings by Ray tasks are those of one process, also when workers are killed."""

import os
import signal
import threading
import time

import psutil
import pytest
import torch
from tests_support import tiny_config

import caft
from caft.retrieval import ScoreKind, rank_all
from caft.scoring import CAFTScorer
from pipelines.evaluate.features import FeatureWriter
from pipelines.evaluate.scoring import Ranker

KINDS = [ScoreKind("whole"), ScoreKind("blended", 0.3), ScoreKind("rerank", 0.3, top_k=16)]
IMAGES, TEXTS = 600, 900


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A model's scorer, stored image features in three blocks, texts and their images."""
    torch.manual_seed(0)
    model = caft.create_model(tiny_config(embed_dim=64, pool_heads=4)).eval()
    images = {"whole": torch.randn(IMAGES, 64), "fine": torch.randn(IMAGES, 16, 64)}
    texts = {"whole": torch.randn(TEXTS, 64), "parts": torch.randn(TEXTS, 4, 64)}
    writer = FeatureWriter(str(tmp_path_factory.mktemp("features")))
    writer.add(images)
    owner = torch.randint(0, IMAGES, (TEXTS,))
    return CAFTScorer(model), images, writer.finish(), texts, owner


def assert_same(found, expected):
    for kind in KINDS:
        for name, value in vars(expected[kind.name]).items():
            mine = getattr(found[kind.name], name)
            if value.is_floating_point() and "rank" not in name:
                torch.testing.assert_close(mine, value, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(mine, value), (kind.name, name)


def ranked(case):
    scorer, _, stored, texts, owner = case
    return Ranker(scorer, 0.0, 60.0).rank(stored, texts, owner.tolist(), KINDS, "test")


def test_tasks_rank_as_one_process_does(ray_cluster, case):
    scorer, images, _, texts, owner = case
    assert_same(ranked(case), rank_all(scorer, images, texts, owner, KINDS))


@pytest.mark.slow
def test_killed_workers_change_nothing_but_time(ray_cluster, case):
    undisturbed = ranked(case)
    killed, done = [], threading.Event()

    def kill_the_scoring():
        while not done.is_set() and len(killed) < 3:
            for process in psutil.Process().children(recursive=True):
                try:
                    title = (process.cmdline() or [""])[0]
                    if title in ("ray::_tallies", "ray::_own_scores") and len(killed) < 3:
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(title)
                except (psutil.Error, ProcessLookupError):
                    continue
            time.sleep(0.01)

    killer = threading.Thread(target=kill_the_scoring)
    killer.start()
    try:
        found = ranked(case)
    finally:
        done.set()
        killer.join()
    assert killed
    for kind in KINDS:
        for name, value in vars(undisturbed[kind.name]).items():
            assert torch.equal(getattr(found[kind.name], name), value), (kind.name, name)
