"""Images and captions as CAFT reads them, for the transformers library: `AutoProcessor`.
An exported folder holds this file and the modules that it imports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from caft.hub.configuration_caft import CAFTConfig
from caft.hub.modeling_caft import TOKENIZER, model_settings
from caft.preprocessing import eval_image
from caft.tokenizer import BPETokenizer, caption_ids


class CAFTProcessor(ProcessorMixin):
    """Pictures to squares, captions to the ids of their chunks, by the model's own rules."""

    attributes: ClassVar[list[str]] = []

    def __init__(self, config: CAFTConfig, tokenizer_file: str) -> None:
        self.config, self.tokenizer_file = config, tokenizer_file
        settings = model_settings(config)
        self.image, self.text = settings.image, settings.text
        self.tokenizer = BPETokenizer(Path(tokenizer_file))
        self.chat_template = None

    @classmethod
    def from_pretrained(cls, name: Any, **kwargs: Any) -> CAFTProcessor:
        """From an exported folder or a repository of the hub."""
        where = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
        config = CAFTConfig.from_pretrained(name, **where)
        return cls(config, cached_file(name, TOKENIZER, **where))

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """`pixel_values` (B, 3, S, S) uint8, which the model normalises, and `input_ids`
        (B, chunks, T).

        Args:
            images: a picture or several: paths, encoded bytes, Pillow images, arrays or tensors.
            text: a whole caption or several.
        """
        found = {}
        if images is not None:
            pictures = images if isinstance(images, list | tuple) else [images]
            side, rule = self.image.image_size_px, self.image.preprocess
            found["pixel_values"] = torch.stack([eval_image(p, side, rule) for p in pictures])
        if text is not None:
            found["input_ids"] = caption_ids(text, self.text, self.tokenizer)
        return BatchFeature(found)
