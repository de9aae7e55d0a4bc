"""The one check at the library's doors: pictures, batches of them, texts and token ids, in forms
that PyTorch users pass. Forward and compiled or exported graphs never come through here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from caft.captions import Rule, caption_sentences, even_chunks
from caft.config import PictureRule
from caft.errors import DataError
from caft.preprocessing import Picture, read_picture
from caft.transforms import denormalise, normalise

Pictures = Picture | Sequence[Picture]
Texts = str | Iterable[str]
LARGEST_NORMALISED = 3.0  # in magnitude; CLIP's statistics give -1.8 .. 2.2
UNNORMALISED_RANGE = 0.9  # of values within 0 .. 1
FIX = (
    "give uint8 pixels, or what caft.transforms.normalise(uint8 pixels) gives; model.preprocess "
    "makes the former of one picture"
)


def in_graph() -> bool:
    """Whether this call is compiled, exported or traced: there are no values to check then."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def image_batch(images: Pictures, preprocess: Callable[[Picture], Tensor], size_px: int) -> Tensor:
    """Images in any form as one batch (B, 3, H, W), uint8 or normalised floats.

    Tensors and float arrays are taken as they are, at their own size; files, bytes, Pillow images
    and uint8 arrays (H, W, C) are shown as the model is meant to see them, by `preprocess`.

    Raises:
        DataError: nothing of that kind, floats that are no normalised pixels, or images of several
            sizes in one batch.
    """
    several = split_batch(images)
    if isinstance(images, Tensor):
        batch = images if several is not None else images[None]
        return _check_tensor(batch, one=several is None)
    if several is None:
        return _one_image(cast(Picture, images), preprocess)[None]
    if not several:
        return torch.empty(0, 3, size_px, size_px, dtype=torch.uint8)
    found = []
    for number, image in enumerate(several):
        try:
            found.append(_one_image(image, preprocess))
        except DataError as error:
            raise DataError(f"image {number} of {len(several)}: {error}") from None
    sizes = {tuple(image.shape[1:]) for image in found}
    if len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sorted(sizes)[:3])
        raise DataError(
            f"images of several sizes in one batch ({shown}): pass each through model.preprocess"
        )
    if any(image.is_floating_point() for image in found):
        found = [i if i.is_floating_point() else normalise(i[None])[0] for i in found]
    return torch.stack(found)


def split_batch(images: Any) -> list[Any] | None:
    """The pictures of a list or stack; None where it is a single one."""
    if isinstance(images, list | tuple):
        return list(images)
    stacked = isinstance(images, Tensor | np.ndarray) and images.ndim == 4
    objects = isinstance(images, np.ndarray) and images.dtype.kind in "OUS" and images.ndim
    return list(images) if stacked or objects else None


def picture_pixels(image: Picture, rule: PictureRule) -> np.ndarray:
    """One picture in any form as uint8 RGB (H, W, 3); normalised floats are turned back."""
    if isinstance(image, np.ndarray) and image.dtype.kind == "f":
        image = _float_array(image)
    if isinstance(image, Tensor):
        image = _check_tensor(image[None], one=True)[0]
        if image.is_floating_point():
            image = denormalise(image[None])[0]
    return read_picture(image, rule)


def text_list(texts: Texts) -> list[str]:
    """Texts as a list; a `str` is one text.

    Raises:
        DataError: something that is no text, or that has no order.
    """
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable) or isinstance(
        texts, bytes | set | frozenset | dict | Tensor
    ):
        raise DataError(f"texts of type {type(texts).__name__}: give a text or a list of texts")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise DataError(
                f"text {number} of {len(found)} is of type {type(text).__name__}: give strings"
            )
    return [str(text) for text in found]


def caption_list(captions: str | Sequence[str | Sequence[str]]) -> list[str | list[str]]:
    """Captions, each a text or a list of sentences; a `str` is one caption.

    Raises:
        DataError: as `text_list`.
    """
    if isinstance(captions, list | tuple) and any(isinstance(c, list | tuple) for c in captions):
        return [
            text_list(c) if isinstance(c, list | tuple) else text_list([c])[0] for c in captions
        ]
    return [*text_list(captions)]  # type: ignore[arg-type]


def caption_chunks(
    captions: str | Sequence[str | Sequence[str]], chunks: int, rule: Rule
) -> list[str]:
    """The chunks of B captions in a row, B * chunks texts: each caption is split into sentences by
    `rule` and joined to chunks as evaluation does; see `caft.captions.even_chunks`.

    Args:
        captions: texts, or lists of sentences, such as a dataset holds.

    Raises:
        DataError: a caption without a sentence, or as `text_list`.
    """
    pieces: list[str] = []
    for number, caption in enumerate(caption_list(captions)):
        sentences = caption_sentences(caption, rule)
        if not sentences:
            raise DataError(f"caption {number}: no sentence in {caption!r:.60}; leave it out")
        pieces += even_chunks(sentences, chunks)
    return pieces


def token_ids(tokens: Tensor, vocab_size: int, context_length: int, chunks: int) -> Tensor:
    """Token ids (B, K, T) int64, checked where their values are at hand.

    Raises:
        DataError: another shape or type, too few sub-captions, or ids that no text has.
    """
    if tokens.dtype in (torch.bool,) or tokens.is_floating_point() or tokens.is_complex():
        raise DataError(
            f"tokens of {_name(tokens.dtype)}: ids are integers, as model.tokenize gives"
        )
    shape = tuple(tokens.shape)
    if tokens.dim() != 3 or (shape[0] and shape[1] < chunks):
        raise DataError(
            f"tokens of shape {shape}: (B, K, T) is due, of B captions K sub-captions each, at "
            f"least {chunks}: model.tokenize(texts).view(B, {chunks}, -1)"
        )
    if tokens.device.type == "cpu" and tokens.numel():
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocab_size:
            raise DataError(
                f"tokens of {low} .. {high}: the vocabulary has ids 0 .. {vocab_size - 1}"
            )
        longest = int(tokens.argmax(dim=-1).max()) + 1
        if longest > context_length:
            raise DataError(
                f"tokens: a text of {longest} is longer than the context of {context_length}; "
                "model.tokenize cuts such texts"
            )
    return tokens.long()


def label_maps(superpixels: Any, images: Tensor, cells: int) -> Tensor:
    """Superpixel labels (B, H, W) of a batch of images, checked where their values are at hand.

    Raises:
        DataError: another shape or type, or labels beyond the images' cells.
    """
    labels = torch.as_tensor(superpixels)
    labels = labels[None] if labels.dim() == 2 and len(images) == 1 else labels
    due = (len(images), *images.shape[2:])
    if tuple(labels.shape) != due or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"superpixels of shape {tuple(labels.shape)}, {_name(labels.dtype)}: integer labels "
            f"{due} are due, one for each pixel"
        )
    if labels.device.type == "cpu" and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= cells:
            raise DataError(f"superpixels of {low} .. {high}: labels are 0 .. {cells - 1}")
    return labels.to(images.device)


def _one_image(image: Picture, preprocess: Callable[[Picture], Tensor]) -> Tensor:
    """One image (3, H, W)."""
    if isinstance(image, np.ndarray) and image.dtype.kind == "f":
        image = _float_array(image)
    if isinstance(image, Tensor):
        return _check_tensor(image[None], one=True)[0]
    if not isinstance(image, str | os.PathLike | bytes | Image.Image | np.ndarray):
        raise DataError(
            f"an image of type {type(image).__name__}: give a path, encoded bytes, a Pillow image, "
            "a uint8 array (H, W, 3) or a tensor (3, H, W)"
        )
    return preprocess(image)


def _float_array(array: np.ndarray) -> Tensor:
    if array.ndim != 3 or array.shape[2] != 3:
        raise DataError(f"image of shape {array.shape}, {array.dtype}: (H, W, 3) is due")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def _check_tensor(images: Tensor, one: bool) -> Tensor:
    """A batch (B, C, H, W) as (B, 3, H, W): grey and RGBA become RGB; `one` is for messages."""
    shape = tuple(images.shape[1:] if one else images.shape)
    due = "(3, H, W)" if one else "(B, 3, H, W)"
    if images.dim() != 4:
        raise DataError(f"images of shape {shape}: tensors are {due}")
    channels = images.shape[1]
    bytes_ = images.dtype == torch.uint8
    if channels != 3 and not (bytes_ and channels in (1, 4)):
        hint = ""
        if images.shape[-1] in (1, 3, 4):
            order = "(2, 0, 1)" if one else "(0, 3, 1, 2)"
            hint = f"; channels come first: images.permute{order}"
        raise DataError(f"images of shape {shape}: tensors are {due}{hint}")
    if not bytes_ and not images.is_floating_point():
        raise DataError(f"images of {_name(images.dtype)}: {FIX}")
    if images.device.type == "cpu" and not bytes_ and images.numel():
        _check_floats(images.detach())
    return images[:, :3].expand(-1, 3, -1, -1) if channels != 3 else images


def _check_floats(images: Tensor) -> None:
    low, high = images.flatten(1).float().aminmax(dim=1)
    if not bool(torch.isfinite(low + high).all()):
        raise DataError(f"images hold NaN or infinity: {FIX}")
    if bool(((low < -LARGEST_NORMALISED) | (high > LARGEST_NORMALISED)).any()):
        raise DataError(
            f"images are floats of {low.min():.3g} .. {high.max():.3g}, which normalised pixels "
            f"never are: {FIX}"
        )
    # Of each image, and of all: a batch may have dark images and bright ones.
    low, high = torch.cat([low, low.min()[None]]), torch.cat([high, high.max()[None]])
    raw = (low >= 0) & (high <= 1) & (high - low > UNNORMALISED_RANGE)
    if bool(raw.any()):
        raise DataError(
            "images are floats of 0 .. 1 that nobody normalised, and their embeddings would be "
            "worthless: give (255 * images).round().to(torch.uint8), or what "
            "caft.transforms.normalise makes of that"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
