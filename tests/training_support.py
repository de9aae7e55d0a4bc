"""Groups of worker processes without Ray, and the batches and model that they train on."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests_support import random_images, tiny_config

from caft.config import ModelConfig
from caft.superpixels import superpixel_labels
from pipelines.train.ingest import Batch

PARTS = 5  # sub-captions of a caption
END = 1535  # the end token, the largest of the demo's tokenizer


def run_in_processes(function: Callable, workers: int, *args: Any) -> None:
    """`function(rank, *args)` in `workers` processes of one thread that talk over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, (function, workers, port, args), nprocs=workers)


def _process(rank: int, function: Callable, workers: int, port: int, args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    function(rank, *args)
    dist.destroy_process_group()


def trained_config(config: ModelConfig) -> ModelConfig:
    """`config` with the demo's small tokenizer."""
    text = {"tokenizer": "demo", "vocab_size": END + 1}
    return config.model_copy(update={"text": config.text.model_copy(update=text)})


def batch_of(step: int, count: int, rank: int, workers: int) -> Batch:
    """A worker's share of `count` random images and captions, which `step` decides; keys are
    numbered through all steps."""
    images = random_images(count, seed=step)
    superpixels = superpixel_labels(images, tiny_config().image.superpixels)
    generator = torch.Generator().manual_seed(step)
    end = torch.randint(1, 15, (count, PARTS, 1), generator=generator)
    ids = torch.randint(1, 1500, (count, PARTS, 16), generator=generator)
    place = torch.arange(16)
    tokens = torch.where(place < end, ids, 0) + END * (place == end)
    rows = range(count)[rank * count // workers : (rank + 1) * count // workers]
    keys = tuple(f"key{step * count + n}" for n in rows)
    share = slice(rows.start, rows.stop)
    return Batch(images[share], superpixels[share], tokens[share], keys)
