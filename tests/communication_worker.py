"""One of the workers of test_communication: trains two steps and notes what it sent."""

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
from tests_support import random_images, tiny_config, tiny_controls

from caft.losses import draw_negatives
from caft.model import create_model
from pipelines.train.distributed import TrainingModel
from pipelines.train.schedule import parameter_groups

BATCH, PARTS, CONTEXT = 8, 6, 16
SCALAR_NUMBERS = 4  # norms and flags: not worth a prediction


def main(rank: int, workers: int, folder: Path, stage: int, name: str) -> None:
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False  # nothing to compile
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed asks for it
    sent = count_collectives()  # ahead of DeepSpeed, which keeps the functions that it finds
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    torch.manual_seed(0)
    model = create_model(tiny_config() if name == "caft" else tiny_controls()[name])
    trained = TrainingModel(model, block_size=BATCH)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    engine = deepspeed.initialize(
        model=trained,
        optimizer=torch.optim.AdamW(parameter_groups(trained, 0.1), lr=1e-4),
        config={
            "train_batch_size": BATCH,
            "train_micro_batch_size_per_gpu": BATCH // workers,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        },
    )[0]
    step(engine, model, rank, workers)  # the first also sets things up
    sent.clear()
    step(engine, model, rank, workers)
    if rank == 0:
        (folder / "sent.json").write_text(json.dumps(sent))
    dist.barrier()
    dist.destroy_process_group()


def step(engine, model, rank: int, workers: int) -> None:
    share = BATCH // workers
    images = random_images(share, seed=rank)
    chunks = model.config.text.chunks if not model.config.losses.parts else PARTS
    tokens = torch.randint(1, 1000, (share, chunks, CONTEXT))
    tokens[..., -1] = 49407
    loss = engine(
        images, model.superpixel_labels(images), tokens, draw_negatives(BATCH, chunks, 0, BATCH)
    )
    engine.backward(loss.total * workers)
    engine.step()


def count_collectives() -> list[tuple[str, int]]:
    """Name and payload bytes of every collective of torch.distributed from now on."""
    calls: list[tuple[str, int]] = []
    results = {
        "all_reduce": ("all_reduce", lambda a, k: k["tensor"] if "tensor" in k else a[0]),
        "all_gather": ("all_gather", lambda a, k: k["tensor_list"] if "tensor_list" in k else a[0]),
        "all_gather_into_tensor": (
            "all_gather",
            lambda a, k: k["output_tensor"] if "output_tensor" in k else a[0],
        ),
        "reduce_scatter_tensor": ("reduce_scatter", lambda a, k: k["input"] if k else a[1]),
        "reduce": ("reduce", lambda a, k: k["tensor"] if "tensor" in k else a[0]),
        "broadcast": ("broadcast", lambda a, k: k["tensor"] if "tensor" in k else a[0]),
    }

    def counted(function, name, result):
        def call(*args, **kwargs):
            value = result(args, kwargs)
            tensors = value if isinstance(value, list) else [value]
            if sum(tensor.numel() for tensor in tensors) > SCALAR_NUMBERS:
                calls.append((name, sum(t.numel() * t.element_size() for t in tensors)))
            return function(*args, **kwargs)

        return call

    for attribute, (name, result) in results.items():
        setattr(dist, attribute, counted(getattr(dist, attribute), name, result))
    return calls


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
