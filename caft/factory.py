"""Models with their transforms, in the call that users of open_clip know.
On top of create_model and from_pretrained; each transform gives what `encode_image` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caft.checkpoint import load_model
from caft.config import FlatImageConfig, ImageConfig, load_model_config
from caft.errors import CheckpointError
from caft.hub.repository import from_pretrained
from caft.model import CAFT, create_model
from caft.preprocessing import Picture, eval_image, read_picture
from caft.tokenizer import caption_ids, load_tokenizer
from caft.transforms import normalise, random_window, resize_bicubic

HUB = "hf-hub:"
TRAINING_SCALE, TRAINING_RATIO = 0.9, (3 / 4, 4 / 3)  # of the published recipe's random crop
Transform = Callable[[Picture], Tensor]


def create_model_and_transforms(
    name: str | Path,
    pretrained: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[CAFT, Transform, Transform]:
    """A model, the transform of training pictures and that of evaluation.

    Both take a picture in any form that `caft.preprocessing.read_picture` reads, and return
    float32 (3, S, S), normalised: stacked, they are what `encode_image` takes.

    Args:
        name: a recipe (`caft_b`), a checkpoint folder, or `hf-hub:org/name`.
        pretrained: a checkpoint of the recipe; None: random weights.
        device, dtype: as in `load_model`.

    Raises:
        ConfigError: no such recipe.
        CheckpointError: as `from_pretrained`, or a checkpoint of another model than the recipe.
    """
    if pretrained is not None:
        model = load_model(pretrained, device=device, dtype=dtype)
        if not _same_shape(model, name):
            raise CheckpointError(f"{pretrained}: a {model.config.name}, not the recipe {name}")
    elif str(name).startswith(HUB):
        repository = str(name).removeprefix(HUB)
        model = from_pretrained(repository, device=device, dtype=dtype)
    elif Path(name).is_dir():
        model = load_model(name, device=device, dtype=dtype)
    else:
        model = create_model(name).to(device=device, dtype=dtype)
    image = model.config.image
    return model, _training_transform(image), _evaluation_transform(image)


def get_tokenizer(name: str | Path) -> Callable[[str | Sequence[str]], Tensor]:
    """The function from whole captions to ids (B, chunks, T) as `encode_text` takes them, of a
    recipe or a checkpoint folder; a model has it as `tokenize_captions`."""
    text = load_model(name).config.text if Path(name).is_dir() else load_model_config(name).text
    return partial(caption_ids, text=text, tokenizer=load_tokenizer(text.tokenizer))


def _training_transform(image: ImageConfig | FlatImageConfig) -> Transform:
    def transform(picture: Picture) -> Tensor:
        pixels = read_picture(picture, image.preprocess)
        # torch's generator differs from worker to worker of a DataLoader, numpy's does not.
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        height, width = pixels.shape[:2]
        window = random_window(height, width, TRAINING_SCALE, TRAINING_RATIO, rng)
        top, left, height, width = window
        crop = pixels[top : top + height, left : left + width].copy()  # what is read may be fixed
        return normalise(resize_bicubic(crop, image.image_size_px)[None])[0]

    return transform


def _evaluation_transform(image: ImageConfig | FlatImageConfig) -> Transform:
    def transform(picture: Picture) -> Tensor:
        return normalise(eval_image(picture, image.image_size_px, image.preprocess)[None])[0]

    return transform


def _same_shape(model: CAFT, name: str | Path) -> bool:
    with torch.device("meta"):
        asked = CAFT(load_model_config(name)).state_dict()
    own = model.state_dict()
    return own.keys() == asked.keys() and all(own[k].shape == asked[k].shape for k in own)
