"""From Parquet rows to the tensors of a training step, through Ray Data.
Each worker streams its own lanes of the epoch plan, in a fixed order, from any step on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch
from torch import Tensor

from caft.errors import DataError
from pipelines import storage
from pipelines.data.dataset import DATASET_SCHEMA, Dataset
from pipelines.superpixel_columns import unpack_superpixels
from pipelines.train.loader import COLUMNS, MAY_BE_MISSING, Loader
from pipelines.train.plan import EpochPlan, RowGroup, Subset, Window

SEGMENT_GROUPS = 256  # steps windows handed to one Ray Data execution: bounds the driver's lists
AHEAD_GROUPS = 2  # of a segment are left when the next one is begun


@dataclass
class Batch:
    """One worker's share of a step: rows [rank * B, (rank + 1) * B) of the global batch."""

    images: Tensor  # (B, 3, S, S) uint8
    superpixels: Tensor | None  # (B, S, S) int16, -1 where the model computes them; None: all
    tokens: Tensor  # (B, K, T) int64, T the longest of this share
    keys: tuple[str, ...] = ()  # B, of the dataset's rows; empty for a batch of something else


def index_row_groups(
    dataset: Dataset, split: str, field: str = "split", subset: Subset | None = None
) -> tuple[RowGroup, ...]:
    """Every row group of the dataset with the number of its rows that are in `split`, and in
    `subset` of it; `field` is what messages call that setting.

    Raises:
        DataError: no row is in that split, or a file lacks a column that training reads.
    """
    groups = []
    for entry in dataset.files:
        filesystem, path = storage.filesystem(storage.join(dataset.path, entry.name))
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            _require_columns(file.schema_arrow, storage.join(dataset.path, entry.name))
            for index in range(file.num_row_groups):
                names = ["split"] if subset is None else ["split", "key"]
                table = file.read_row_group(index, columns=names)
                mask = pc.equal(table["split"], split)
                if subset is not None:
                    mask = pc.and_(mask, subset.mask(table["key"]))
                if rows := pc.sum(mask).as_py():
                    groups.append(RowGroup(entry.name, index, rows))
    if not groups:
        raise DataError(f"{dataset.path}: no row has split '{split}'; check the key '{field}'")
    return tuple(groups)


def _require_columns(schema: pa.Schema, path: str) -> None:
    for name in COLUMNS:
        due = DATASET_SCHEMA.field(name).type
        if name not in schema.names:
            if name != MAY_BE_MISSING:
                raise DataError(
                    f"{path}: no column '{name}', which training reads; make the dataset with "
                    "python -m pipelines.data"
                )
        elif schema.field(name).type != due:
            raise DataError(f"{path}: column '{name}' is {schema.field(name).type}, due is {due}")


def iter_batches(
    plan: EpochPlan, loader: Loader, rank: int, workers: int, start_step: int, total_steps: int
) -> Iterator[Batch]:
    """This worker's batches of steps [start_step, total_steps), across epochs.

    Lanes are dealt in consecutive runs, so the shares of all workers laid end to end are the
    same global batch for any number of them.
    """
    lanes = range(rank * plan.lanes // workers, (rank + 1) * plan.lanes // workers)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # or a DataError ends as text in a traceback
    groups = _window_groups(plan, lanes, start_step, total_steps)
    segments = iter(lambda: list(itertools.islice(groups, SEGMENT_GROUPS)), [])
    step, segment = start_step, next(segments, None)
    stream = _decoded(segment, loader) if segment else iter(())
    while segment:
        following = next(segments, None)
        following_stream: Iterator[dict[str, np.ndarray]] = iter(())
        for number, group in enumerate(segment):
            if following and number == max(0, len(segment) - AHEAD_GROUPS):
                following_stream = _decoded(following, loader)
            lane_arrays = [{name: a[0] for name, a in next(stream).items()} for _ in group]
            first = group[0].epoch * plan.steps_per_epoch + group[0].first_step
            for offset in range(step - first, min(group[0].steps, total_steps - first)):
                start = offset * plan.rows_per_lane_step
                yield _collate(lane_arrays, slice(start, start + plan.rows_per_lane_step))
                step += 1
        segment, stream = following, following_stream


def _decoded(
    segment: Sequence[tuple[Window, ...]], loader: Loader
) -> Iterator[dict[str, np.ndarray]]:
    """The loader's arrays of all windows in turn; Ray begins to make them at once, on a thread, so
    that the first are there when the segment before ends.

    What does not lie on this machine is read by tasks of their own, which take no CPU, so that
    nothing waits for a request but them.
    """
    windows = [window for group in segment for window in group]
    tasks = ray.data.TaskPoolStrategy(size=loader.ingest.loaders_per_worker)
    items = [asdict(window) for window in windows]
    rows: ray.data.Dataset = ray.data.from_items(items, override_num_blocks=len(items))
    if not storage.is_local(loader.dataset):
        rows = rows.map(loader.read, compute=tasks, num_cpus=0)
    stream = iter(
        rows.map(loader, compute=tasks).iter_batches(batch_size=1, prefetch_batches=len(segment[0]))
    )
    thread = ThreadPoolExecutor(1)
    first = thread.submit(next, stream)
    thread.shutdown(wait=False)
    return itertools.chain(_resolved(first), stream)


def _resolved(first: Future[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    yield first.result()


def _window_groups(
    plan: EpochPlan, lanes: range, start_step: int, total_steps: int
) -> Iterator[tuple[Window, ...]]:
    """For each window of steps in turn, the windows of all `lanes`."""
    per_epoch = plan.steps_per_epoch
    for epoch in range(start_step // per_epoch, -(-total_steps // per_epoch)):
        from_step = max(0, start_step - epoch * per_epoch)
        for group in zip(*(plan.windows(epoch, lane, from_step) for lane in lanes), strict=True):
            if epoch * per_epoch + group[0].first_step < total_steps:
                yield group


def _collate(lanes: list[dict[str, np.ndarray]], rows: slice) -> Batch:
    def join(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([arrays[name][rows] for arrays in lanes]))

    tokens = join("tokens").long()
    length = int(tokens.argmax(dim=-1).max()) + 1  # the end token is the largest id
    superpixels = unpack_superpixels(row for arrays in lanes for row in arrays["superpixels"][rows])
    keys = tuple(str(key) for arrays in lanes for key in arrays["keys"][rows])
    return Batch(join("images"), superpixels, tokens[..., :length], keys)
