# ruff: noqa: E402  (the device is there before torch, the recorder before the stage)
"""Training steps of a recipe at real size on the fake device; prints what they did as JSON.

python benchmarks/gpu_free/step.py [--images 256] [--workers 8] [key=value ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ["DS_ACCELERATOR"] = "cuda"

from gpu_free import device  # isort: skip  (torch asks once)
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpu_free.recorder import Log, Recorder, attend

FakeTensorMode.avoid_device_init = property(lambda self: True)  # type: ignore[assignment]
LOG = Log()
device.install(LOG.note)
MODE = FakeTensorMode(allow_non_fake_inputs=True)
torch.nn.functional.scaled_dot_product_attention = attend(LOG, MODE)
torch._C._set_only_lift_cpu_tensors(True)
_made_on_host = torch.tensor


def _tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
    """`torch.tensor` on the device is a tensor of the host and a copy; on every thread."""
    made = _made_on_host(data, *args, **kwargs)
    on_gpu = device is not None and torch.device(device).type == "cuda"
    return made.to(device) if on_gpu else made


torch.tensor = _tensor  # type: ignore[assignment]

from torch.utils._python_dispatch import _disable_current_modes

from gpu_free.fusion import counting_backend

_compile = torch.compile


def _counted(function: Any, **options: Any) -> Any:
    """`torch.compile` whose graphs are counted; they know nothing of the recorder."""
    compiled = _compile(function, **(options | {"backend": counting_backend(LOG, MODE)}))

    def call(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return compiled(*args, **kwargs)

    return call


torch.compile = _counted  # type: ignore[assignment]

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

RECIPE = ROOT / "configs" / "train" / "caft_b_30m.yaml"


class Run:
    """A worker of a run on the fake device, from its engine to the end of a step."""

    def __init__(self, images: int, workers: int, maps: str, overrides: list[str]) -> None:
        os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE=str(workers))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29755")
        dist.init_process_group("fake", rank=0, world_size=workers, store=FakeStore())
        from caft.config import load_config, load_model_config
        from caft.model import create_model
        from gpu_free.batch import make_batch
        from pipelines.train.config import TrainConfig
        from pipelines.train.deepspeed.engine import start_engine
        from pipelines.train.distributed import TrainingModel
        from pipelines.train.inputs import Sender, sent_ahead

        own = [
            f"global_batch={images * workers}",
            f"scaling.num_workers={workers}",
            "optimizer.grad_clip=1.0",
            "average={decay: 0.999}",
            "scaling.compile=true",
        ]
        self.config = config = load_config(TrainConfig, str(RECIPE), [*own, *overrides])
        self.model = create_model(load_model_config(config.model))
        with torch.no_grad():
            self.model.to("cuda")
        self.model.recompute_activations(config.scaling.recompute_activations)
        self.model.low_residuals(config.deepspeed.residuals == "as_products")
        self.trained = TrainingModel(
            self.model, config.block_size, config.scaling.compile, config.batch_norm_block
        )
        self.trained.to = lambda *_, **__: self.trained  # DeepSpeed would move it again
        self.engine = start_engine(self.trained, config)
        # Its timer waits for the device from the second step on.
        self.engine.tput_timer.global_step_count = 5
        self._watch()
        one = make_batch(images, maps, self.model.config)
        sender = Sender(self.model, config, torch.device("cpu"))
        sender.prepare(one)  # which reads values, that a fake device has not
        sender._device = torch.device("cuda", 0)
        # Fake tensors are not for two threads at once: the next batch is made when it is due.
        self.due = threading.Semaphore(0)
        on_host = (one for _ in iter(self.due.acquire, False))
        self.batches = sent_ahead(on_host, sender, torch.device("cuda", 0))

    def _watch(self) -> None:
        from pipelines.train.deepspeed.sharding import WeightAverage
        from pipelines.train.guard import Guard
        from pipelines.train.signals import Notices
        from pipelines.train.telemetry import Telemetry

        gpu = torch.device("cuda", 0)
        self.telemetry = Telemetry(self.config, self.trained, 1000, gpu)
        self.average = WeightAverage(self.model, self.config.average)
        self.guard = Guard(self.config, self.engine, self.trained)
        Notices._listen = lambda self: None  # type: ignore[method-assign]
        self.signals = Notices(None, gpu, "none")

    def phases(self) -> None:
        """Name what a step calls, so that counts are of parts of it."""
        import pipelines.train.deepspeed.buckets as buckets
        import pipelines.train.distributed as distributed
        import pipelines.train.step as step

        def name(owner: Any, attribute: str, phase: str) -> None:
            inner: Callable = getattr(owner, attribute)

            def call(*args: Any, **kwargs: Any) -> Any:
                with LOG.during(phase):
                    return inner(*args, **kwargs)

            setattr(owner, attribute, call)

        name(step, "model_inputs", "inputs")
        name(self.model, "superpixel_labels", "superpixels")
        name(self.model, "encode_image", "image forward")
        name(self.model, "encode_text", "text forward")
        name(distributed, "caft_loss", "loss forward")
        name(self.engine, "backward", "backward")
        name(buckets._Bucket, "send", "reduce")
        name(self.engine, "step", "optimiser")
        name(step, "clamp_scales_", "after the step")
        name(step, "update_running_statistics_", "after the step")

    def step(self, number: int) -> None:
        """One step as the worker's loop takes it, its logging apart."""
        from pipelines.train.step import apply_gradients, compute_gradients

        LOG.default_phase = "backward"  # autograd's own threads
        with LOG.during("loop"):
            self.due.release()
            batch = next(self.batches)
            loss = compute_gradients(self.engine, self.trained, batch, number, self.config)
            skipped = apply_gradients(self.engine, self.trained, 1e-4)
        with LOG.during("telemetry"):
            self.telemetry.add(loss, self.engine.get_global_grad_norm(), skipped)
        with LOG.during("average"):
            self.average.update(number + 1)
        with LOG.during("guard"):
            self.guard.watch(number + 1, batch.host, loss, skipped)
        with LOG.during("signals"):
            self.signals.agree()
        self.telemetry._alone.start()


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Record this thread, and every one that starts meanwhile."""
    run = threading.Thread.run

    def recorded_run(thread: threading.Thread) -> None:
        with Recorder(LOG, MODE):
            run(thread)

    threading.Thread.run = recorded_run  # type: ignore[method-assign]
    try:
        with Recorder(LOG, MODE):
            yield
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="of this worker")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--maps", choices=["all", "some", "none"], default="none")
    parser.add_argument("--steps", type=int, default=2, help="the last of them is reported")
    parser.add_argument("--out", type=Path, help="file to write to, beside what DeepSpeed prints")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    with recorded():
        run = Run(args.images, args.workers, args.maps, args.overrides)
        run.phases()
        for number in range(args.steps):
            LOG.clear()
            run.step(number)
    result = json.dumps(LOG.as_dict())
    args.out.write_text(result) if args.out else print(result)


if __name__ == "__main__":
    main()
