"""Steps whose loss or gradients are not finite: named with the samples at fault, skipped or final.
Between the worker's loop and the output; that such a step changes nothing is decided in step.py."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from caft.errors import CAFTError, DataError, NumericsError
from caft.losses import CAFTLoss
from pipelines import storage
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed.loss_scale import can_fall, fixed_loss_scale, loss_scale
from pipelines.train.deepspeed.sharding import first_not_finite
from pipelines.train.distributed import TrainingModel
from pipelines.train.ingest import Batch
from pipelines.train.late import Late
from pipelines.train.step import model_inputs

SKIPPED = "skipped.jsonl"
KEYS_SHOWN = 5


@dataclass(frozen=True)
class Skip:
    """A step whose update was not made, as a line of `skipped.jsonl`.

    Attributes:
        step: counted from 1, as in metrics and checkpoints.
        reason: what was not finite. `overflow`: float16 gradients, for which the loss scale was
            lowered; nothing is wrong with the data.
        images: keys whose image alone gives features that are not finite.
        captions: keys whose caption does.
        weight: the first weight that is not finite itself.
        batch: keys of the whole batch, where no single samples are at fault.
    """

    step: int
    reason: Literal["loss", "gradients", "overflow"]
    loss_scale: float | None = None
    images: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    weight: str | None = None
    batch: list[str] = field(default_factory=list)


class _Watched(NamedTuple):
    """What is kept of a step until its outcome is looked at."""

    step: int
    batch: Batch
    total: Tensor
    skipped: Late
    scale: float | None


class Guard:
    """Looks at each step one step late, so that the host never waits for the device; by then the
    step has already changed nothing. Every worker has one, and all come to the same conclusion.

    Args:
        step: that training goes on from; what `skipped.jsonl` says of later ones is forgotten.
    """

    def __init__(
        self, config: TrainConfig, engine: Any, trained: TrainingModel, step: int = 0
    ) -> None:
        self._config, self._engine, self._trained = config, engine, trained
        self._watched: _Watched | None = None
        self._in_a_row = 0
        self._path = storage.join(config.output, SKIPPED)
        self._skips: dict[int, dict[str, Any]] = {}
        if dist.get_rank() == 0 and storage.exists(self._path):
            lines = storage.read_bytes(self._path).decode().splitlines()
            known = [json.loads(line) for line in lines]
            self._skips = {skip["step"]: skip for skip in known if skip["step"] <= step}

    def watch(self, step: int, batch: Batch, loss: CAFTLoss, skipped: Tensor) -> None:
        """Take note of `step`, which `apply_gradients` has `skipped` or not, and judge the one
        before.

        Raises:
            DataError: that one was not finite because of single samples, and the policy is to stop
                or too many came in a row.
            NumericsError: as before, but no single samples are at fault.
        """
        total, scale = loss.total.detach(), fixed_loss_scale(self._engine)
        before, self._watched = self._watched, _Watched(step, batch, total, Late(skipped), scale)
        if before is not None:
            self._judge(before)

    def settle(self) -> None:
        """Judge the last step now: before a checkpoint and at the end. Raises as `watch`."""
        last, self._watched = self._watched, None
        if last is not None:
            self._judge(last)

    def metrics(self) -> dict[str, float]:
        """On the first worker: steps skipped so far, and the scale of the loss if it has one."""
        overflows = sum(skip["reason"] == "overflow" for skip in self._skips.values())
        metrics = {"train/skipped_steps": float(len(self._skips) - overflows)}
        scale = loss_scale(self._engine)
        if scale is not None:
            metrics |= {"train/overflowed_steps": float(overflows), "train/loss_scale": scale}
        return metrics

    def _judge(self, watched: _Watched) -> None:
        if not watched.skipped.read():
            self._in_a_row = 0
            return
        finite_loss = watched.total.isfinite().float()
        dist.all_reduce(finite_loss, dist.ReduceOp.MIN)
        scale = watched.scale
        if finite_loss and scale is not None and can_fall(self._engine, scale):
            self._write(Skip(watched.step, "overflow", scale))
            _say(
                watched.step, f"gradients overflow at a loss scale of {scale:,.0f}; update skipped"
            )
            return
        skip = self._diagnosed(watched, "gradients" if finite_loss else "loss")
        self._write(skip)
        self._in_a_row += 1
        limit = self._config.guard.max_skips
        if self._config.guard.policy == "stop":
            raise _error(skip, self._path, "; or set guard.policy=skip")
        if self._in_a_row > limit:
            raise _error(
                skip, self._path, f"; guard.max_skips {limit} steps before it were skipped"
            )
        row = f"{self._in_a_row} of {limit} in a row"
        _say(watched.step, f"{_cause(skip)}; the update is skipped, {row}")

    def _diagnosed(self, watched: _Watched, reason: Literal["loss", "gradients"]) -> Skip:
        """Encode every image and caption again, each alone: what batch normalisation or a packed
        row mixes would make neighbours of a bad sample bad too."""
        config, batch = self._config, watched.batch
        alone = config.scaling.model_copy(update={"micro_batch": 1, "compile": False})
        config = config.model_copy(update={"scaling": alone})
        self._engine.eval()
        with torch.no_grad():
            self._engine(
                *model_inputs(self._engine, self._trained, batch, watched.step - 1, config)
            )
        self._engine.train()
        finite = self._trained.finite_samples.tolist()  # (2, B)
        keys = batch.keys or tuple(str(n) for n in range(len(batch.images)))
        mine = [[key for key, good in zip(keys, row, strict=True) if not good] for row in finite]
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, (*mine, list(keys)))
        images, captions, everything = (
            [key for share in shares for key in share[n]] for n in range(3)
        )
        if len(everything) in (len(images), len(captions)):  # it is not the samples
            images, captions = [], []
        return Skip(
            watched.step,
            reason,
            watched.scale,
            images,
            captions,
            first_not_finite(self._trained.model),
            [] if images or captions else everything,
        )

    def _write(self, skip: Skip) -> None:
        if dist.get_rank() == 0:
            self._skips[skip.step] = asdict(skip)
            lines = "".join(f"{json.dumps(known)}\n" for known in self._skips.values())
            storage.write_bytes(self._path, lines.encode())


def _say(step: int, what: str) -> None:
    if dist.get_rank() == 0:
        print(f"train: step {step:,}: {what}", flush=True)


def _error(skip: Skip, path: str, more: str) -> CAFTError:
    text = f"step {skip.step:,}: {_cause(skip)}"
    if skip.weight is not None:
        return NumericsError(f"{text}; go back to a checkpoint with whole weights")
    if skip.images or skip.captions:
        return DataError(f"{text}; take these rows out of the dataset{more} (all: {path})")
    return NumericsError(
        f"{text}; lower optimizer.lr, set optimizer.grad_clip or use another deepspeed.precision"
        f"{more} (the batch's keys: {path})"
    )


def _cause(skip: Skip) -> str:
    what = "the loss is" if skip.reason == "loss" else "gradients are"
    at_fault = [
        f"{name} of {_shown(keys)}"
        for name, keys in (("images", skip.images), ("captions", skip.captions))
        if keys
    ]
    if skip.weight is not None:
        return f"{what} not finite, because weights are not: {skip.weight}"
    if at_fault:
        return f"{what} not finite, because of the {' and the '.join(at_fault)}"
    return f"{what} not finite, and not because of single images or captions"


def _shown(keys: list[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return ", ".join(keys[:KEYS_SHOWN]) + more
