"""CAFT and its controls behind the adapter interface.
Rows become pixels and superpixels on CPUs; the model completes and encodes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

import caft
from caft.captions import even_chunks
from caft.checkpoint import CONFIG, WEIGHTS, read_manifest, sha256_of
from caft.model import ImageFeatures
from caft.scoring import CAFTScorer
from pipelines import storage
from pipelines.evaluate.adapters.base import Adapter
from pipelines.evaluation_input import CAFTPreprocess
from pipelines.superpixel_columns import complete_superpixels, unpack_superpixels

TRAINING = (
    "dataset",
    "dataset_fingerprint",
    "decontamination",
    "start",
    "recipe",
)  # of the manifest


class CAFTAdapter(Adapter):
    """A checkpoint folder, a `.safetensors` file, or a released file.

    Raises:
        CheckpointError: see `caft.load_model`.
    """

    def __init__(self, path: str) -> None:
        with storage.opened(path) as local:
            self.model = caft.load_model(local)
            self.name = self.model.config.name
            self.sentences = self.model.config.text.sentences
            if local.is_file():
                self.fingerprint = self._as_read(sha256_of(local))
                return
            manifest = read_manifest(local)
        digests = "".join(manifest["files"][name]["sha256"] for name in (WEIGHTS, CONFIG))
        self.fingerprint = self._as_read(hashlib.sha256(digests.encode()).hexdigest())
        self.step = int(manifest.get("step", 0))
        self.run_id = str(manifest.get("mlflow_run_id", ""))
        self.training = {name: manifest[name] for name in TRAINING if name in manifest}

    def _as_read(self, digest: str) -> str:
        """A fingerprint of files and of how pictures are shown, captions split and parts scored,
        which the files of released models need not say. What was measured before there was a
        choice keeps its fingerprint."""
        config = self.model.config
        rules = (config.image.preprocess, config.text.sentences, config.unit_queries)
        if rules == ("squash", "default", False):
            return digest
        return hashlib.sha256(f"{digest}{rules}".encode()).hexdigest()

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def preprocess(self) -> CAFTPreprocess:
        image = self.model.config.image
        return CAFTPreprocess(image, image.preprocess)

    def image_features(self, columns: Mapping[str, np.ndarray]) -> ImageFeatures:
        """All that the model knows of preprocessed images."""
        pixels = torch.from_numpy(columns["images"]).to(self.model.device)
        superpixels = complete_superpixels(
            pixels, unpack_superpixels(columns["superpixels"]), self.model.superpixel_labels
        )
        return self.model.encode_image(pixels, superpixels)

    def scored_features(self, images: ImageFeatures) -> dict[str, Tensor]:
        """What the score reads of `image_features`."""
        read = {"whole": images.whole, "fine": images.fine}
        names = ("whole", "fine") if self.model.config.losses.parts else ("whole",)
        return {name: read[name] for name in names}

    def encode_images(self, columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return self.scored_features(self.image_features(columns))

    def encode_texts(self, captions: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        chunks = self.model.config.text.chunks
        pieces = [piece for sentences in captions for piece in even_chunks(sentences, chunks)]
        texts = self.model.encode_text(self.model.tokenize(pieces).view(len(captions), chunks, -1))
        return {"parts": texts.parts, "whole": texts.whole}

    def scorer(self) -> CAFTScorer:
        return CAFTScorer(self.model)
