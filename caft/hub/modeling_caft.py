"""CAFT as a model of the transformers library: `AutoModel.from_pretrained(folder,
trust_remote_code=True)`. An exported folder holds this file and the modules that it imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, cached_file

from caft.config import ModelConfig, validate
from caft.hub.configuration_caft import CAFTConfig
from caft.model import CAFT
from caft.tokenizer import BPETokenizer

TOKENIZER = "tokenizer.json"


def model_settings(config: CAFTConfig) -> ModelConfig:
    """The configuration in CAFT's own form. Not a method: transformers loads a configuration's
    file apart from that of the model, and their classes would not be the same."""
    return validate(ModelConfig, config.caft, source="config.json: caft")


@dataclass
class CAFTOutput(ModelOutput):
    """Embeddings (B, D) of images and captions, and their scores (images, captions)."""

    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class CAFTModel(PreTrainedModel):
    """CAFT behind the interface of transformers; `model.caft` is the model itself."""

    config_class = CAFTConfig
    base_model_prefix = "caft"
    main_input_name = "pixel_values"

    def __init__(self, config: CAFTConfig) -> None:
        super().__init__(config)
        self.caft = CAFT(model_settings(config))
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the tokenizer comes along, so that texts can be encoded."""
        found = super().from_pretrained(name, *args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        file = cached_file(name, TOKENIZER, revision=kwargs.get("revision"))
        model.caft.tokenizer = BPETokenizer(Path(file))
        return found

    def _init_weights(self, module: nn.Module) -> None:
        """Modules initialise themselves."""

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Whole-image embeddings (B, D) of images (B, 3, S, S), as the processor gives them."""
        return self.caft.encode_image(pixel_values).whole

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        """Whole-caption embeddings (B, D) of ids (B, chunks, T), as the processor gives them."""
        return self.caft.encode_text(input_ids).whole

    def forward(self, pixel_values: Tensor, input_ids: Tensor, alpha: float = 0.3) -> CAFTOutput:
        """Scores of all pairs of B images and B' captions.

        Args:
            pixel_values: (B, 3, S, S), input_ids (B', chunks, T), as the processor gives them.
            alpha: weight of the part score; see `CAFT.score`.
        """
        images, texts = self.caft.encode_image(pixel_values), self.caft.encode_text(input_ids)
        logits = self.caft.score(images, texts, alpha=alpha)
        return CAFTOutput(logits, logits.T, images.whole, texts.whole)
