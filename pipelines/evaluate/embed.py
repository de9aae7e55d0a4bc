"""Encodes benchmarks with Ray Data: tasks decode rows, actors that hold the model encode them.
Benchmark in; stored features of images and of any captions out, in the benchmark's order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import ray
import torch
from torch import Tensor

from caft.captions import JOINER, Rule, caption_sentences
from caft.config import PictureRule
from caft.errors import CheckpointError
from pipelines import storage
from pipelines.evaluate.adapters import Adapter, PixelPreprocess, Preprocess, open_adapter
from pipelines.evaluate.adapters.own import CAFTAdapter
from pipelines.evaluate.benchmark import Benchmark, Caption, Measure, Rows
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.features import (
    FeatureWriter,
    StoredFeatures,
    features_key,
    open_features,
)
from pipelines.evaluate.measures import one_image
from pipelines.evaluation_input import CAFTPreprocess, Piece
from pipelines.failures import located, one_voice
from pipelines.progress import Progress
from pipelines.workers import connect

CAPTIONS_PER_TASK = 256
MEASURED, LABEL_MAP = "measured", "label_map"

Texts = Sequence[Sequence[str]]  # as `Adapter.encode_texts` takes them


@dataclass(frozen=True)
class Encoder:
    """A checkpoint's model on the cluster, and where features are kept."""

    config: EvaluateConfig
    checkpoint: str  # as `open_adapter` takes it
    adapter: Adapter
    features: str  # folder

    def images(self, benchmark: Benchmark) -> StoredFeatures:
        """Features of a benchmark's images, and aside what its measure counted on them, int64
        (n, columns).

        Raises:
            CheckpointError: the model gives features that are not numbers.
            DataError: an image that cannot be decoded.
        """
        preprocess, rule = shown(self.adapter, benchmark)
        parts = {"data": benchmark.fingerprint, "split": benchmark.split, "of": "images"}
        if rule is not None:
            parts["preprocess"] = rule
        key = features_key(model=self.adapter.fingerprint, **parts)
        folder = storage.join(self.features, key)
        if (found := open_features(folder)) is not None:
            return found
        pieces = [asdict(piece) for piece in benchmark.pieces]
        preparer = Preparer(benchmark.rows, preprocess)
        prepared = ray_data().from_items(pieces, override_num_blocks=len(pieces))
        embedded = prepared.map_batches(preparer, batch_size=1).map_batches(
            ImageEncoder,
            fn_constructor_args=(self.checkpoint, benchmark.measure, rule, self._on_gpu),
            batch_size=self.config.batch_size,
            **self._actors,
        )
        writer, measured, done = FeatureWriter(folder), [np.zeros(0, dtype=np.int64)], 0
        for batch in self._batches(embedded, f"{benchmark.name} images", len(benchmark.urls)):
            count = len(batch["position"])
            places = np.arange(done, done + count)
            assert np.array_equal(batch["position"], places), "rows lost, doubled or out of order"
            measured += [np.asarray(row, dtype=np.int64) for row in batch.pop(MEASURED)]
            names = [benchmark.urls[place] for place in batch.pop("position")]
            writer.add(self._checked(batch, names))
            done += count
        assert done == len(benchmark.urls), "rows lost"
        columns = benchmark.measure.columns if benchmark.measure else 1
        joined = torch.from_numpy(np.concatenate(measured).reshape(-1, columns))
        return writer.finish({MEASURED: joined})

    def texts(
        self, versions: Sequence[Sequence[Caption]], label: str, rule: Rule | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Features of each version of a benchmark's captions; the model is started once for all,
        and reads equal captions once.

        Args:
            rule: that captions are split by; None: the model's own.

        Raises:
            CheckpointError: the model gives features that are not numbers.
        """
        read = [[self._as_read(caption, rule) for caption in captions] for captions in versions]
        unique = list(dict.fromkeys(text for texts in read for text in texts))
        place = {caption: n for n, caption in enumerate(unique)}
        text = json.dumps(unique, ensure_ascii=False)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        key = features_key(model=self.adapter.fingerprint, data=digest, of="texts")
        folder = storage.join(self.features, key)
        stored = open_features(folder) or self._encode_texts(unique, folder, label)
        features = stored.all()
        for texts in read:
            index = torch.tensor([place[text] for text in texts])
            yield {name: tensor[index] for name, tensor in features.items()}

    def _as_read(self, caption: Caption, rule: Rule | None) -> tuple[str, ...]:
        """A caption as the model's `encode_texts` takes it."""
        own = self.adapter.sentences
        if own is None:
            return (caption if isinstance(caption, str) else JOINER.join(caption),)
        return tuple(caption_sentences(caption, rule or own))

    def _encode_texts(self, captions: Texts, folder: str, label: str) -> StoredFeatures:
        starts = range(0, len(captions), CAPTIONS_PER_TASK)
        items = [
            {"captions": json.dumps(captions[start : start + CAPTIONS_PER_TASK])}
            for start in starts
        ]
        embedded = (
            ray_data()
            .from_items(items, override_num_blocks=len(items))
            .map_batches(
                TextEncoder,
                fn_constructor_args=(self.checkpoint, self._on_gpu),
                batch_size=1,
                **self._actors,
            )
        )
        writer, done = FeatureWriter(folder), 0
        for batch in self._batches(embedded, f"{label} captions", len(captions)):
            count = len(next(iter(batch.values())))
            names = [" ".join(sentences)[:60] for sentences in captions[done : done + count]]
            writer.add(self._checked(batch, names))
            done += count
        assert done == len(captions), "captions lost"
        return writer.finish()

    @property
    def _on_gpu(self) -> bool:
        return self.config.num_gpus_per_actor > 0

    @property
    def _actors(self) -> dict[str, Any]:
        return {
            "compute": ray.data.ActorPoolStrategy(size=self.config.concurrency),
            "num_gpus": self.config.num_gpus_per_actor,
        }

    def _batches(
        self, embedded: ray.data.Dataset, label: str, total: int
    ) -> Iterator[dict[str, np.ndarray]]:
        label = f"evaluate {self.adapter.name} {label}"
        progress = Progress(label, total, "rows", self.config.progress_every_s)
        with one_voice(label):
            for batch in embedded.iter_batches(batch_size=None):
                progress.update(len(next(iter(batch.values()))))
                yield batch

    def _checked(self, batch: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
        for tensor in tensors.values():
            bad = ~tensor.flatten(1).isfinite().all(dim=1)
            if bad.any():
                raise CheckpointError(
                    f"{self.checkpoint}: gives features that are not numbers, first for "
                    f"{names[int(bad.nonzero()[0])]}; training has diverged, use an earlier "
                    "checkpoint"
                )
        return tensors


def shown(adapter: Adapter, benchmark: Benchmark) -> tuple[Preprocess, PictureRule | None]:
    """What prepares a benchmark's images for a model, and the rule of the benchmark by which it
    does; None where it does so by the model's own, as an adapter of somebody else's always does.
    """
    preprocess, rule = adapter.preprocess(), benchmark.preprocess
    if isinstance(preprocess, CAFTPreprocess) and rule not in (None, preprocess.rule):
        return preprocess.shown_by(rule), rule
    if isinstance(preprocess, PixelPreprocess) and rule is not None:
        return preprocess.shown_by(rule), rule
    return preprocess, None


def pictures(adapter: Adapter, benchmark: Benchmark) -> str:
    """How the model is shown the benchmark's images: 'crop', 'squash', or '' for a way of its own
    that this project does not know."""
    preprocess, rule = shown(adapter, benchmark)
    return preprocess.rule if isinstance(preprocess, CAFTPreprocess) else rule or ""


def ray_data() -> Any:
    """The `ray.data` module, set up as all of the stage needs it."""
    connect()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True  # so batches are the same in every run
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # or a DataError ends as text in a traceback
    return ray.data


@dataclass(frozen=True)
class Preparer:
    """Reads and decodes one piece: the part of the work that needs no model weights."""

    rows: Rows
    preprocess: Preprocess

    @one_voice("decoding images")
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Columns over the piece's n rows: position, url, label map and what the model
        preprocesses."""
        cv2.setNumThreads(1)  # one task is one core; Ray runs several
        piece = Piece(**{name: values[0] for name, values in batch.items()})
        with located(f"{self.rows.place}: {piece.file}, row group {piece.row_group}"):
            rows = self.rows.read(piece)
            return {
                "position": piece.first + np.arange(len(rows)),
                "url": [row["url"] for row in rows],
                LABEL_MAP: [row.get(LABEL_MAP) or b"" for row in rows],
                **self.preprocess(rows),
            }


class ImageEncoder:
    """Ray Data actor that holds the model and reads prepared images."""

    def __init__(
        self, checkpoint: str, measure: Measure | None, rule: PictureRule | None, use_gpu: bool
    ) -> None:
        self._checkpoint, self._use_gpu = checkpoint, use_gpu
        self._measure = measure
        self._rule = rule

    @cached_property  # Ray loses the exception of an actor that cannot be made
    def _adapter(self) -> Adapter:
        return _on_device(self._checkpoint, self._use_gpu)

    @one_voice("encoding images")
    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Columns over the batch's rows: position, features and what was measured."""
        with located(f"a batch of {len(batch['url'])} from {batch['url'][0]}"):
            return self._encode(batch)

    def _encode(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        measured: list[list[int]] = [[] for _ in batch["position"]]
        if isinstance(self._adapter, CAFTAdapter):
            images = self._adapter.image_features(batch)
            features = self._adapter.scored_features(images)
            rule = self._rule or self._adapter.model.config.image.preprocess
            for n, url in enumerate(batch["url"] if self._measure else ()):
                assert self._measure is not None
                label_map = batch[LABEL_MAP][n] or None
                found = self._measure.rows(
                    self._adapter.model, one_image(images, n), url, label_map, rule
                )
                measured[n] = found.ravel().tolist()
        else:
            features = self._adapter.encode_images(batch)
        return {"position": batch["position"], MEASURED: measured, **_numpy(features)}


class TextEncoder:
    """Ray Data actor that holds the model and reads captions."""

    def __init__(self, checkpoint: str, use_gpu: bool) -> None:
        self._checkpoint, self._use_gpu = checkpoint, use_gpu

    @cached_property
    def _adapter(self) -> Adapter:
        return _on_device(self._checkpoint, self._use_gpu)

    @one_voice("encoding captions")
    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        captions = [caption for text in batch["captions"] for caption in json.loads(text)]
        return _numpy(self._adapter.encode_texts(captions))


def _on_device(checkpoint: str, use_gpu: bool) -> Adapter:
    adapter = open_adapter(checkpoint)
    adapter.to(torch.device("cuda" if use_gpu else "cpu"))
    return adapter


def _numpy(features: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.float().cpu().numpy() for name, tensor in features.items()}
