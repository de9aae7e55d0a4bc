"""The configuration of a CAFT model for the transformers library.
An exported folder holds this file, and `AutoConfig` runs it."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class CAFTConfig(PretrainedConfig):
    """The keys of a CAFT model's own configuration, in `caft`."""

    model_type = "caft"

    def __init__(self, caft: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.caft = caft or {}
        super().__init__(**kwargs)
