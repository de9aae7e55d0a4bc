"""Bytes of a step: as predicted from configuration and batch, and as two workers send them."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from communication_model import Exchange, Network, Step, padded_numbers, step_time
from communication_worker import BATCH, PARTS
from tests_support import tiny_config, tiny_controls

WORKER = Path(__file__).parents[1] / "communication_worker.py"
SLOW = Network(
    "slow",
    2,
    gpu_bytes_per_s=1e9,
    node_bytes_per_s=1e8,
    gpu_hop_s=1e-4,
    node_hop_s=1e-3,
    efficiency=1,
)


@pytest.mark.parametrize(
    ("stage", "name"), [(0, "caft"), (1, "caft"), (2, "caft"), (1, "clip_softmax")]
)
def test_two_workers_send_what_is_predicted(tmp_path, stage, name):
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(r), "2", str(tmp_path), str(stage), name]
        )
        for r in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    sent = Counter()
    for collective, size in json.loads((tmp_path / "sent.json").read_text()):
        sent[collective] += size
    model = tiny_config() if name == "caft" else tiny_controls()[name]
    predicted = Counter()
    for exchange in Step(model, BATCH, PARTS, workers=2, zero_stage=stage).exchanges():
        predicted[exchange.collective] += exchange.payload_bytes
    assert sent == predicted


def test_bytes_follow_from_batch_parts_and_width():
    model = tiny_config(embed_dim=16)
    sizes = {
        e.name: e.payload_bytes for e in Step(model, 100, 8, 4, 1, feature_bytes=2).exchanges()
    }
    assert sizes["part embeddings"] == 100 * 8 * 16 * 2
    assert sizes["whole-text embeddings"] == 100 * 16 * 2
    more = Step(model, 200, 8, 64, 1).exchanges()
    assert {e.name for e in more} == set(sizes)
    assert next(e for e in more if e.name == "weights").payload_bytes % (4 * 64) == 0
    assert padded_numbers(7, 4) == padded_numbers(8, 4) == 8


def test_a_ring_passes_on_all_shares_but_one():
    gather, reduce = Exchange("a", "all_gather", 800), Exchange("b", "all_reduce", 800)
    assert gather.sent_bytes(8) == 700
    assert reduce.sent_bytes(8) == 1400
    assert gather.sent_bytes(1) == reduce.sent_bytes(1) == 0
    assert (gather.hops(8), reduce.hops(8)) == (7, 14)


def test_the_slowest_link_of_the_ring_decides():
    weights = Exchange("w", "all_gather", 10**9)
    assert SLOW.seconds(weights, 1) == 0
    assert SLOW.seconds(weights, 2) == pytest.approx(0.5 + 1e-4)  # inside a node
    assert SLOW.seconds(weights, 4) == pytest.approx(7.5 + 3e-3)


def test_backward_hides_gradients_and_nothing_else():
    exchanges = [
        Exchange("g", "all_reduce", 10**9, in_backward=True),
        Exchange("w", "all_gather", 10**9),
    ]
    fast = step_time(exchanges, 2, SLOW, compute_s=3.0)
    assert fast.whole == pytest.approx(3.0 + 0.5, abs=0.01)
    slow = step_time(exchanges, 2, SLOW, compute_s=0.3)
    assert slow.whole == pytest.approx(0.3 + 0.5 + (1.0 - 0.2), abs=0.01)
