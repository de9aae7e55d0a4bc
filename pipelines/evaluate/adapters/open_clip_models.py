"""Models of the open_clip library behind the adapter interface.
An optional extra: nothing else imports open_clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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


class OpenCLIPAdapter(Adapter):
    """`MODEL:PRETRAINED` as `open_clip.create_model_and_transforms` takes them: a tag of published
    weights, or a file.

    Raises:
        ConfigError: open_clip is not installed.
        CheckpointError: it knows no such model or weights.
    """

    sentences = None

    def __init__(self, name: str) -> None:
        try:
            import open_clip
        except Exception as error:  # a torchvision of another build fails as a RuntimeError
            raise needs("open-clip", error) from None
        model, _, pretrained = name.partition(":")
        if not pretrained:
            raise CheckpointError(f"open_clip:{name}: no weights named; write MODEL:PRETRAINED")
        try:
            self._model, _, transform = open_clip.create_model_and_transforms(
                model, pretrained=pretrained
            )
            self._tokenizer = open_clip.get_tokenizer(model)
        except Exception as error:  # a damaged file may fail in any way
            raise unloadable(f"open_clip:{name}", error) from None
        self._model.eval()
        self._preprocess = PixelPreprocess(_Transform(transform))
        self.name = f"{model}-{Path(pretrained).stem}".replace("/", "-")
        self.fingerprint = fingerprint_of(self._model.state_dict(), model, transform)

    def to(self, device: torch.device) -> None:
        self._model.to(device)

    def preprocess(self) -> PixelPreprocess:
        return self._preprocess

    def encode_images(self, columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        pixels = torch.from_numpy(columns["images"]).to(self._device)
        return {"whole": self._model.encode_image(pixels)}

    def encode_texts(self, captions: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        tokens = self._tokenizer([JOINER.join(sentences) for sentences in captions])
        return {"whole": self._model.encode_text(tokens.to(self._device))}

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device


class _Transform:
    """One picture (H, W, 3) to the array (3, S, S) that the model's own transform makes of it."""

    def __init__(self, transform: Callable[[object], Tensor]) -> None:
        self._transform = transform

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        from PIL import Image

        return self._transform(Image.fromarray(picture)).numpy()
