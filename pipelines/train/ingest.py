"""From Parquet rows to the tensors of a training step, through Ray Data.
Each worker streams its own lanes of the epoch plan, in a fixed order, from any step on."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch
from torch import Tensor

from caft.caption_sampling import sample_parts
from caft.config import ModelConfig
from caft.errors import DataError
from caft.superpixels import stored_labels
from caft.tokenizer import load_tokenizer
from caft.transforms import train_image
from pipelines import storage
from pipelines.data.dataset import Dataset
from pipelines.superpixels import pack_superpixels, unpack_superpixels
from pipelines.train.config import IngestConfig
from pipelines.train.plan import EpochPlan, Piece, RowGroup, Window

COLUMNS = ["key", "image", "captions", "superpixels", "split"]
SEGMENT_GROUPS = 256  # steps windows handed to one Ray Data execution: bounds the driver's lists


@dataclass
class Batch:
    """One worker's share of a step: rows [rank * B, (rank + 1) * B) of the global batch."""

    images: Tensor  # (B, 3, S, S) uint8
    superpixels: Tensor | None  # (B, S, S) int64, -1 where the model computes them; None: all
    tokens: Tensor  # (B, K, T) int64, T the longest of this share


@dataclass(frozen=True)
class Loader:
    """Turns windows into arrays. Travels to Ray Data tasks, so it holds settings alone."""

    dataset: str
    split: str
    model: ModelConfig
    ingest: IngestConfig

    @property
    def extra_parts(self) -> int:
        """Sub-captions beside the chunks: the part losses alone read them."""
        return self.ingest.extra_parts if self.model.losses.parts else 0

    def __call__(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """Decode one window (as `asdict` spells it) to arrays over its n rows, in the order in
        which steps consume them."""
        cv2.setNumThreads(1)  # one task is one core; Ray runs several
        pieces = [Piece(**piece) for piece in row["pieces"]]
        table = pa.concat_tables(read_piece(self.dataset, piece, self.split) for piece in pieces)
        order = np.random.default_rng(row["seed"]).permutation(len(table))
        samples = [self._sample(entry, row["epoch"]) for entry in table.take(order).to_pylist()]
        images = torch.stack([image for image, _, _ in samples])  # (n, 3, S, S)
        stored = [labels for _, labels, _ in samples]
        text = self.model.text
        tokens = load_tokenizer(text.tokenizer)(
            [part for _, _, parts in samples for part in parts], text.context_length
        )
        padded = torch.zeros(len(tokens), text.context_length, dtype=torch.int32)
        padded[:, : tokens.shape[1]] = tokens
        return {
            "images": images.numpy(),
            "superpixels": pack_superpixels(images, stored, self.model.image.superpixels),
            "tokens": padded.view(len(samples), text.chunks + self.extra_parts, -1).numpy(),
        }

    def _sample(self, row: dict[str, Any], epoch: int) -> tuple[Tensor, Tensor | None, list[str]]:
        digest = hashlib.sha256(f"{epoch}/{row['key']}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        try:
            stored = stored_labels(row.get("superpixels"), self.model.image)
        except DataError as error:
            raise DataError(f"{self.dataset}: key {row['key']}: {error}") from None
        image, labels = train_image(
            row["image"],
            self.model.image.image_size_px,
            self.ingest.crop_min_scale,
            rng,
            stored,
            self.ingest.flip_probability,
        )
        parts = sample_parts(row["captions"], rng, self.model.text.chunks, self.extra_parts)
        return image, labels, parts


def index_row_groups(dataset: Dataset, split: str) -> tuple[RowGroup, ...]:
    """Every row group of the dataset with the number of its rows that are in `split`.

    Raises:
        DataError: no row is in that split.
    """
    groups = []
    for entry in dataset.files:
        filesystem, path = storage.filesystem(storage.join(dataset.path, entry.name))
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            for index in range(file.num_row_groups):
                column = file.read_row_group(index, columns=["split"])["split"]
                rows = column.to_pylist().count(split)
                if rows:
                    groups.append(RowGroup(entry.name, index, rows))
    if not groups:
        raise DataError(f"{dataset.path}: no row has split '{split}'; check the key 'split'")
    return tuple(groups)


def read_piece(dataset: str, piece: Piece, split: str) -> pa.Table:
    """The rows of one piece, read from its row group alone."""
    filesystem, path = storage.filesystem(storage.join(dataset, piece.file))
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        table = file.read_row_group(piece.row_group, columns=COLUMNS)
    table = table.filter(pc.equal(table["split"], split))
    return table.slice(piece.start, piece.stop - piece.start)


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
    groups = _window_groups(plan, lanes, start_step, total_steps)
    step = start_step
    while segment := list(itertools.islice(groups, SEGMENT_GROUPS)):
        windows = [window for group in segment for window in group]
        stream = iter(
            ray.data.from_items([asdict(w) for w in windows], override_num_blocks=len(windows))
            .map(loader, compute=ray.data.TaskPoolStrategy(size=loader.ingest.loaders_per_worker))
            .iter_batches(batch_size=1, prefetch_batches=len(lanes))
        )
        for group in segment:
            lane_arrays = [{name: a[0] for name, a in next(stream).items()} for _ in group]
            first = group[0].epoch * plan.steps_per_epoch + group[0].first_step
            for offset in range(step - first, min(group[0].steps, total_steps - first)):
                start = offset * plan.rows_per_lane_step
                yield _collate(lane_arrays, slice(start, start + plan.rows_per_lane_step))
                step += 1


def _window_groups(
    plan: EpochPlan, lanes: range, start_step: int, total_steps: int
) -> Iterator[tuple[Window, ...]]:
    """For each window of steps in turn, the windows of all `lanes`."""
    per_epoch = plan.steps_per_epoch
    for epoch in range(start_step // per_epoch, -(-total_steps // per_epoch)):
        from_step = max(0, start_step - epoch * per_epoch)
        yield from zip(*(plan.windows(epoch, lane, from_step) for lane in lanes), strict=True)


def _collate(lanes: list[dict[str, np.ndarray]], rows: slice) -> Batch:
    def join(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([arrays[name][rows] for arrays in lanes]))

    tokens = join("tokens").long()
    length = int(tokens.argmax(dim=-1).max()) + 1  # the end token is the largest id
    superpixels = unpack_superpixels(row for arrays in lanes for row in arrays["superpixels"][rows])
    return Batch(join("images"), superpixels, tokens[..., :length])
