"""CLIP and SigLIP models of the transformers library behind the adapter interface.
An optional extra: nothing else imports transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caft.captions import JOINER
from caft.errors import CheckpointError
from pipelines.evaluate.adapters.base import (
    Adapter,
    PixelPreprocess,
    fingerprint_of,
    needs,
    unloadable,
)

FAMILIES = {"clip": "CLIPModel", "siglip": "SiglipModel"}  # type -> architecture


class TransformersAdapter(Adapter):
    """A folder or hub name with a dual encoder, its image processor and its tokenizer.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: nothing that can be loaded under that name, or no model of FAMILIES.
    """

    sentences = None

    def __init__(self, name: str) -> None:
        try:
            from transformers import (
                AutoConfig,
                AutoImageProcessor,
                AutoModel,
                AutoTokenizer,
                PretrainedConfig,
            )
        except Exception as error:  # a torchvision of another build fails as a RuntimeError
            raise needs("transformers", error) from None
        try:
            _require_known(name, PretrainedConfig.get_config_dict(name)[0])
            config = AutoConfig.from_pretrained(name)
            self._model = AutoModel.from_pretrained(name, use_safetensors=True).eval()
            # Pillow's resampling is what these models were published with.
            processor = AutoImageProcessor.from_pretrained(name, backend="pil")
            self._tokenizer = AutoTokenizer.from_pretrained(name)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged file may fail in any way
            raise unloadable(f"hf:{name}", error) from None
        self._preprocess = PixelPreprocess(_Transform(processor))
        self._context_length = int(config.text_config.max_position_embeddings)
        self.name = name.rstrip("/").rsplit("/", 1)[-1]
        self.fingerprint = fingerprint_of(
            self._model.state_dict(), processor.to_json_string(), repr(self._tokenizer)
        )

    def to(self, device: torch.device) -> None:
        self._model.to(device)

    def preprocess(self) -> PixelPreprocess:
        return self._preprocess

    def encode_images(self, columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        pixels = torch.from_numpy(columns["images"]).to(self._model.device)
        return {"whole": _embeddings(self._model.get_image_features(pixel_values=pixels))}

    def encode_texts(self, captions: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        # SigLIP was trained on texts padded to the full length, and CLIP does not mind.
        tokens = self._tokenizer(
            [JOINER.join(sentences) for sentences in captions],
            padding="max_length",
            truncation=True,
            max_length=self._context_length,
            return_tensors="pt",
        )
        ids = tokens["input_ids"].to(self._model.device)
        return {"whole": _embeddings(self._model.get_text_features(input_ids=ids))}


def _require_known(name: str, config: Mapping[str, Any]) -> None:
    """Refuse by name what would load as something else, or fail at the first picture.

    Raises:
        CheckpointError: no model of FAMILIES, whatever its type says.
    """
    if not config:
        raise CheckpointError(f"hf:{name}: cannot be loaded: it has no config.json")
    kind = config.get("model_type")
    if kind == "siglip2":
        raise CheckpointError(
            f"hf:{name}: SigLIP 2 NaFlex, which reads pictures as patches of varying number; "
            "fixed-resolution checkpoints of SigLIP 2 can be scored"
        )
    if kind not in FAMILIES:
        raise CheckpointError(
            f"hf:{name}: a model of type '{kind}'; {', '.join(FAMILIES)} can be scored"
        )
    found = list(config.get("architectures") or ())
    code = config.get("auto_map") or {}
    if code or (found and found != [FAMILIES[kind]]):
        what = ", ".join(map(str, found)) or "an architecture of its own"
        raise CheckpointError(
            f"hf:{name}: {what}, which calls itself '{kind}' and is no {FAMILIES[kind]}; as one it "
            "would give other scores. Score it by python:MODULE:FUNCTION"
        )


class _Transform:
    """One picture (H, W, 3) to the array (3, S, S) that the image processor makes of it."""

    def __init__(self, processor: object) -> None:
        self._processor = processor

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        assert callable(self._processor)
        return self._processor(images=picture, return_tensors="np")["pixel_values"][0]


def _embeddings(output: object) -> Tensor:
    """Projected embeddings (B, D): since version 5 they are a field of the output."""
    found = getattr(output, "pooler_output", output)
    assert isinstance(found, Tensor)
    return found
