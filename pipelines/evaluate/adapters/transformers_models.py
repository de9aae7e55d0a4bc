"""CLIP and SigLIP models of the transformers library behind the adapter interface.
An optional extra: nothing else imports transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from caft.captions import JOINER
from caft.errors import CheckpointError
from pipelines.evaluate.adapters import Adapter, PixelPreprocess, fingerprint_of, needs, unloadable

FAMILIES = ("clip", "siglip", "siglip2")


class TransformersAdapter(Adapter):
    """A folder or hub name with a dual encoder, its image processor and its tokenizer.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: nothing that can be loaded under that name, or no model of FAMILIES.
    """

    sentences = None

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
        except ImportError as error:
            raise needs("transformers", error) from None
        try:
            config = AutoConfig.from_pretrained(name)
            if config.model_type not in FAMILIES:
                raise CheckpointError(
                    f"hf:{name}: a model of type '{config.model_type}'; "
                    f"{', '.join(FAMILIES)} can be scored"
                )
            self._model = AutoModel.from_pretrained(name, use_safetensors=True).eval()
            # Pillow's resampling is what these models were published with.
            processor = AutoImageProcessor.from_pretrained(name, backend="pil")
            self._tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:
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
