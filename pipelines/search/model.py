"""The model that an embedding was made by, and what it makes of a query.
A search opens it first; one that made other embeddings is refused here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from caft.captions import caption_sentences
from caft.errors import CheckpointError, ConfigError, DataError
from pipelines import storage
from pipelines.data.config import ImageConfig
from pipelines.data.images.decoder import Decoder
from pipelines.data.images.prepare import ImageRefused
from pipelines.embed.embedding import Embedding
from pipelines.embed.stage import model_of, open_checkpoint
from pipelines.evaluate.adapters import Adapter
from pipelines.identity import first_difference

PART = "part"  # the component of a score that captions' parts make


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        sentences: of the caption, as the model reads them; none without a caption.
        whole: (D,) of length 1, by which all images are ranked.
        texts: the caption's features as a scorer takes them; None without a caption.
        image: the image that others are to be like, encoded; None without one.
    """

    sentences: tuple[str, ...]
    whole: Tensor
    texts: dict[str, Tensor] | None
    image: bytes | None


def open_model(embedding: Embedding, checkpoint: str | None) -> Adapter:
    """The model of an embedding.

    Args:
        checkpoint: where it is now; None: where it was when the embedding was made.

    Raises:
        ConfigError: another model than the one that made the embedding; what differs is named.
        CheckpointError: it is missing, unfinished or damaged.
    """
    made = embedding.model
    place = checkpoint or made["checkpoint"]
    try:
        found = open_checkpoint(place)
    except CheckpointError as error:
        if checkpoint is not None:
            raise
        raise CheckpointError(
            f"{error}; the embedding {embedding.folder} was made by it: give where it is now by "
            "--checkpoint"
        ) from None
    adapter = found.open()
    if found.fingerprint != made["fingerprint"]:
        difference = first_difference(made["config"], model_of(found, adapter)["config"])
        what = "other weights"
        if difference is not None:
            key, then, now = difference
            what = f"{key} {now!r} where the embedding's model has {then!r}"
        raise ConfigError(
            f"--checkpoint: {place} is not the model that made {embedding.folder}: {what}; give "
            f"that one ({made['checkpoint']}), or embed again by this one"
        )
    return adapter


@torch.inference_mode()
def make_query(adapter: Adapter, caption: str | None, image: str | None) -> Query:
    """What the model makes of a caption, an image, or both: then the middle of the two.

    Raises:
        DataError: nothing to look for, a caption without a word, or an image that cannot be read.
    """
    sentences: tuple[str, ...] = ()
    texts, data, wholes = None, None, []
    if caption is not None:
        sentences = _sentences(adapter, caption)
        texts = adapter.encode_texts([sentences])
        wholes.append(F.normalize(texts["whole"][0].float(), dim=-1))
    if image is not None:
        data = _decoded(image)
        features = adapter.encode_images(adapter.preprocess()([{"url": image, "image": data}]))
        wholes.append(F.normalize(features["whole"][0].float(), dim=-1))
    if not wholes:
        raise DataError("nothing to look for: give a caption, or an image by --image")
    whole = F.normalize(torch.stack(wholes).sum(dim=0), dim=-1)
    return Query(sentences, whole, texts, data)


def _sentences(adapter: Adapter, caption: str) -> tuple[str, ...]:
    """The caption as the model's `encode_texts` takes it."""
    if not any(character.isalnum() for character in caption):
        raise DataError(f"the caption {caption!r} has no word in it; describe what to look for")
    if adapter.sentences is None:
        return (caption,)
    return tuple(caption_sentences(caption, adapter.sentences)) or (caption,)


def _decoded(image: str) -> bytes:
    """An image's file as the data stage would store it, checked and decoded in a process of its
    own."""
    try:
        data = storage.read_bytes(image) if not storage.is_local(image) else _local(image)
        with Decoder(ImageConfig()) as decoder:
            return bytes(decoder.prepare(data)["image"])
    except ImageRefused as refusal:
        reason, detail = refusal.args
        raise DataError(
            f"--image {image}: cannot be read as an image: {reason}: {detail}"
        ) from None


def _local(image: str) -> bytes:
    try:
        return Path(storage.filesystem(image)[1]).read_bytes()
    except OSError as error:
        raise DataError(f"--image {image}: {error.strerror or error}") from None


def has_parts(adapter: Adapter) -> bool:
    """Whether a caption's parts have a say in its score."""
    return PART in adapter.scorer().components


def require_parts(adapter: Adapter, option: str) -> None:
    """Raises ConfigError where the model has none."""
    if not has_parts(adapter):
        raise ConfigError(
            f"{option}: {adapter.name} has no parts, so it can neither rank again by them nor show "
            "where a sentence looks; leave it out, or embed by a model with parts"
        )


def image_columns(adapter: Adapter, rows: Sequence[dict[str, object]]) -> dict[str, Tensor]:
    """Features of rows with `url` and `image`, in float16 as an embedding keeps them."""
    found = adapter.encode_images(adapter.preprocess()(rows))
    return {name: tensor.half() for name, tensor in found.items()}
