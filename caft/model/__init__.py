"""CAFT: an image encoder from fine to coarse, a text encoder from part to whole, one score.
The whole model in the order data meets it; the losses are in losses.py, training elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caft.attention_pool import AttentionPool
from caft.config import FlatImageConfig, ModelConfig, load_model_config
from caft.dropout import Draws
from caft.flat_encoder import FlatImageEncoder
from caft.image_encoder import ImageEncoder
from caft.inputs import (
    Pictures,
    image_batch,
    in_graph,
    label_maps,
    text_list,
    token_ids,
)
from caft.layers import Blocks, projection
from caft.model.features import FeaturesT, ImageFeatures, TextFeatures
from caft.packing import PackedTexts
from caft.preprocessing import Picture, eval_image
from caft.superpixels import cell_grid, superpixel_labels
from caft.superpixels.network import SFCN, load_sfcn_weights, read_sfcn_weights
from caft.text_encoder import PartTextEncoder, WholeTextEncoder
from caft.tokenizer import Tokenizer, caption_ids, load_tokenizer
from caft.transforms import normalise

INIT_LOG_SCALE = math.log(1 / 0.07)
MAX_PART_LOG_SCALE = math.log(100)
MAX_WHOLE_LOG_SCALE = {"sigmoid": 4.0, "softmax": math.log(100)}


class CAFT(nn.Module):
    """Contrastive model of images and long captions ("Aligning Forest and Trees").

    Only what the configured losses read is there: a control has no idle parameters.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        losses = config.losses
        self.image_encoder = _image_encoder(config)
        self.part_text_encoder = PartTextEncoder(config.text, config.activation)
        # Parameters have shape (1,): DeepSpeed cannot broadcast those without a dimension.
        if losses.parts:
            self.fine_projection = projection(config.image.width, config.embed_dim)
            self.part_projection = projection(config.text.width, config.embed_dim)
            self.attention_pool = AttentionPool(
                config.embed_dim, config.pool_heads, config.unit_queries
            )
            self.part_log_scale = nn.Parameter(torch.tensor([INIT_LOG_SCALE]))
            self.part_bias = nn.Parameter(torch.tensor([config.init_logit_bias]))
        if losses.has_whole:
            if config.text.whole == "transformer":
                self.whole_text_encoder = WholeTextEncoder(config.text)
            self.coarse_projection = projection(config.image.width, config.embed_dim)
            self.whole_projection = projection(config.text.width, config.embed_dim)
            self.whole_log_scale = nn.Parameter(torch.tensor([INIT_LOG_SCALE]))
        if losses.whole == "sigmoid":  # no bias changes a softmax
            self.whole_bias = nn.Parameter(torch.tensor([config.init_logit_bias]))
        # Frozen: its weights come with a checkpoint or from create_model. It is made last, so that
        # the others start the same with and without it.
        self.superpixel_network = (
            SFCN(frozen=True) if config.image.superpixels.method == "sfcn" else None
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; images are brought to it."""
        return self.part_text_encoder.positions.dtype

    @property
    def device(self) -> torch.device:
        return self.part_text_encoder.positions.device

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.config.text.tokenizer)

    def tokenize(self, texts: str | Iterable[str]) -> Tensor:
        """Token ids (N, T) of N texts, padded to the longest and cut at the context length. A `str`
        is one text.

        Raises:
            DataError: something that is no text.
        """
        return self.tokenizer(text_list(texts), self.config.text.context_length)

    def preprocess(self, picture: Picture) -> Tensor:
        """One picture as this model is to see it: uint8 (3, S, S), for `encode_image`.

        The geometry is that of `image.preprocess` in the model's configuration: 'crop', the
        central square as the published evaluation cuts it, or 'squash', the whole picture.

        Args:
            picture: path, encoded bytes, Pillow image, array (H, W, 3) or tensor (3, H, W) of
                uint8; see `caft.preprocessing.read_picture`.

        Raises:
            DataError: no such file, or nothing that can be read as a picture.
        """
        image = self.config.image
        return eval_image(picture, image.image_size_px, image.preprocess)

    def superpixel_labels(self, images: Tensor) -> Tensor:
        """Label maps (B, H, W) int64 of images as `encode_image` takes them, cut in the way that
        the configuration names. A flat encoder has its patches."""
        if isinstance(self.image_encoder, FlatImageEncoder):
            return self.image_encoder.patch_labels(images)
        return superpixel_labels(images, self.config.image.superpixels, self.superpixel_network)

    def encode_image(
        self,
        images: Pictures,
        superpixels: Tensor | None = None,
        draws: Draws | None = None,
    ) -> ImageFeatures:
        """Encode images.

        Args:
            images: (B, 3, H, W), uint8 RGB or float normalised by `caft.transforms.normalise`; or
                paths, encoded bytes, Pillow images or uint8 arrays (H, W, 3), which pass through
                `preprocess`. One image, or a list or stack of them.
            superpixels: (B, H, W) integer labels, below the number of cells in such an image.
                None: as `superpixel_labels` cuts them. A flat encoder has its patches, whatever
                is given.
            draws: what dropout drops in training; None: torch's generator.

        Raises:
            DataError: nothing that can be read as images; floats on the host that are no
                normalised pixels, such as those of 0 .. 1; labels of another shape; or fewer
                superpixels than the model makes segments of them.
        """
        if not isinstance(images, Tensor) or not in_graph():
            size_px = self.config.image.image_size_px
            images = image_batch(images, self.preprocess, size_px).to(self.device)
            if superpixels is not None and not isinstance(self.image_encoder, FlatImageEncoder):
                height, width = images.shape[2:]
                rows, columns = cell_grid(height, width, self.config.image.superpixels.cell_px)
                superpixels = label_maps(superpixels, images, rows * columns)
            if not len(images):
                return self._without_rows(
                    self._encode_image, images.new_zeros(1, *images.shape[1:])
                )
        return self._encode_image(images, superpixels, draws)

    def _encode_image(
        self, images: Tensor, superpixels: Tensor | None = None, draws: Draws | None = None
    ) -> ImageFeatures:
        if superpixels is None or isinstance(self.image_encoder, FlatImageEncoder):
            superpixels = self.superpixel_labels(images)
        if images.dtype == torch.uint8:
            images = normalise(images)
        superpixels = superpixels.long()
        tokens = self.image_encoder(images.to(self.dtype), superpixels, draws)
        losses = self.config.losses
        if losses.parts:
            fine = tokens.fine @ self.fine_projection
        if losses.has_whole:
            coarse = tokens.coarse @ self.coarse_projection
        if not losses.parts:
            fine = coarse
        if not losses.has_whole:
            coarse = fine
        return ImageFeatures(
            whole=coarse[:, 0],
            fine=fine[:, 1:],
            fine_cls=fine[:, 0],
            coarse=coarse[:, 1:],
            assignments=tokens.assignments,
            superpixels=superpixels,
        )

    def pack_texts(self, tokens: Tensor, row_multiple: int = 1, least_rows: int = 1) -> PackedTexts:
        """Token ids (B, K, T) as `encode_text` reads them; see `caft.packing.pack_texts`. Without
        part losses nothing needs the sub-captions beyond the chunks, and they are left out."""
        if not self.config.losses.parts:
            tokens = tokens[:, : self.config.text.chunks]
        return self.part_text_encoder.pack(tokens, row_multiple, least_rows)

    def tokenize_captions(self, captions: str | Sequence[str | Sequence[str]]) -> Tensor:
        """Token ids (B, chunks, T) of B captions, split as those that the model was trained on.

        Args:
            captions: texts, or lists of sentences, such as a dataset holds.

        Raises:
            DataError: a caption without a sentence.
        """
        return caption_ids(captions, self.config.text, self.tokenizer)

    def encode_text(self, tokens: Tensor | PackedTexts | str | Sequence[str]) -> TextFeatures:
        """Encode captions of K sub-captions each, K >= configured chunks.

        Args:
            tokens: captions, which are split, chunked and tokenized by the model's own rule; ids
                (B, K, T) on any device; or ids packed by `pack_texts`: a training loop packs on
                the host, so that the device never waits for lengths. Graphs that are compiled or
                exported read ids (B, K, T) padded as they are.

        Raises:
            DataError: a caption without a sentence, or ids of another shape, type or range.
        """
        if isinstance(tokens, PackedTexts):
            return self._encode_texts(self.part_text_encoder(tokens), tokens.captions)
        if isinstance(tokens, Tensor) and in_graph():
            return self._encode_texts(self.part_text_encoder.padded(tokens), len(tokens))
        text = self.config.text
        if isinstance(tokens, np.ndarray) and tokens.dtype.kind not in "OUS":
            tokens = torch.from_numpy(tokens)
        if not isinstance(tokens, Tensor):
            tokens = self.tokenize_captions(tokens)
        ids = token_ids(tokens, text.vocab_size, text.context_length, text.chunks)
        if not len(ids):
            parts = max(text.chunks, ids.shape[1])
            return self._without_rows(self.encode_text, ids.new_zeros(1, parts, 1))
        packed = self.pack_texts(ids).to(self.device)
        return self._encode_texts(self.part_text_encoder(packed), packed.captions)

    def _encode_texts(self, embedded: Tensor, captions: int) -> TextFeatures:
        """`embedded` (B*K, W): sub-captions of B captions."""
        losses, chunks = self.config.losses, self.config.text.chunks
        embedded = embedded.view(captions, -1, embedded.shape[-1])  # (B, K, W)
        if losses.parts:
            parts = embedded @ self.part_projection
        if losses.has_whole:
            whole = self._join_chunks(embedded[:, :chunks]) @ self.whole_projection
        if not losses.parts:
            parts = whole[:, None]
        if not losses.has_whole:
            whole = parts[:, :chunks].mean(dim=1)
        return TextFeatures(parts, whole)

    @torch.no_grad()
    def _without_rows(self, encode: Callable[[Tensor], FeaturesT], one: Tensor) -> FeaturesT:
        """The features of an empty batch: those of a batch of one, without their row."""
        training = self.training
        self.eval()
        features = encode(one)
        self.train(training)
        for field in fields(features):
            value = getattr(features, field.name)
            empty = [level[:0] for level in value] if isinstance(value, list) else value[:0]
            setattr(features, field.name, empty)
        return features

    def _join_chunks(self, embedded: Tensor) -> Tensor:
        """Chunk embeddings (B, chunks, W) to whole-caption embeddings (B, W)."""
        if self.config.text.whole == "mean":
            return embedded.mean(dim=1)
        return self.whole_text_encoder(embedded)

    def forward(
        self, images: Tensor, tokens: Tensor | PackedTexts, superpixels: Tensor | None = None
    ) -> tuple[ImageFeatures, TextFeatures]:
        if isinstance(tokens, Tensor) and not in_graph():
            tokens = self.pack_texts(tokens).to(self.device)
        return self._encode_image(images, superpixels), self.encode_text(tokens)

    def whole_scores(self, images: ImageFeatures, texts: TextFeatures) -> Tensor:
        """Whole logits (N_images, N_texts) of a model with a whole loss."""
        images.require("whole")
        texts.require("whole")
        image, text = (F.normalize(_wide(side.whole), dim=-1) for side in (images, texts))
        logits = self.whole_log_scale.exp() * (image @ text.T)
        return logits + self.whole_bias if self.config.losses.whole == "sigmoid" else logits

    def part_scores(self, images: ImageFeatures, texts: TextFeatures) -> Tensor:
        """Part logits (N_images, N_texts), the mean over each text's chunks, of a model with part
        losses."""
        images.require("fine")
        texts.require("parts")
        parts = texts.parts[:, : self.config.text.chunks].to(self.dtype)  # (T, C, D)
        queries = self.attention_pool.scoring_queries(parts).flatten(0, 1)[None]  # (1, T*C, D)
        keys, values = self.attention_pool.keys_values(images.fine.to(self.dtype))
        target = F.normalize(_wide(parts), dim=-1).flatten(0, 1)  # (T*C, D)
        rows = []
        for n in range(len(images.fine)):  # one image at a time: (1, T*C, D) and no more
            pooled = self.attention_pool(queries, keys[n : n + 1], values[n : n + 1])[0]
            rows.append((F.normalize(_wide(pooled), dim=-1) * target).sum(dim=-1))
        cosine = torch.stack(rows) if rows else target.new_zeros(0, len(target))
        cosine = cosine.view(len(rows), *parts.shape[:2])  # (I, T, C)
        return self.part_log_scale.exp() * cosine.mean(dim=-1) + self.part_bias

    @torch.no_grad()
    def score(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        alpha: float = 0.3,
        top_k: int | None = None,
    ) -> Tensor:
        """Score (N_images, N_texts) = (1 - alpha) x whole logit + alpha x mean part logit.

        A model with part losses alone, or with a whole loss alone, has one of the two logits: that
        is its score for any `alpha`. With `top_k`, each image keeps its `top_k` best texts by whole
        score, or by the only one there is; the others get -inf.
        """
        losses = self.config.losses
        first = self.whole_scores if losses.has_whole else self.part_scores
        ranking = first(image_features, text_features)
        scores = ranking
        if alpha and losses.parts and losses.has_whole:
            part = self.part_scores(image_features, text_features)
            scores = (1 - alpha) * ranking + alpha * part
        if top_k is not None:
            best = ranking.topk(min(top_k, ranking.shape[1]), dim=1).indices
            keep = torch.zeros_like(ranking, dtype=torch.bool).scatter_(1, best, True)
            scores = scores.masked_fill(~keep, -torch.inf)
        return scores

    def recompute_activations(self, on: bool = True) -> None:
        """Trade time for memory: every block keeps its input alone and runs again in backward."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.recompute = on

    def low_residuals(self, on: bool = True) -> None:
        """Keep the residual stream of all blocks in the precision of products under autocast:
        fewer bytes to move, other numbers."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.low_residuals = on

    def scales(self) -> dict[str, float]:
        """The factor on the cosine in each logit this model has: part, whole."""
        return {name: scale.exp().item() for name, (scale, _) in self.log_scales().items()}

    def biases(self) -> dict[str, float]:
        """What each logit adds to the scaled cosine, where it adds something."""
        losses = self.config.losses
        found = {}
        if losses.parts:
            found["part"] = self.part_bias.item()
        if losses.whole == "sigmoid":
            found["whole"] = self.whole_bias.item()
        return found

    @torch.no_grad()
    def clamp_scales_(self) -> None:
        """Hold the log-scales in their ranges; called after every optimiser step."""
        for scale, most in self.log_scales().values():
            scale.clamp_(0, most)

    def log_scales(self) -> dict[str, tuple[nn.Parameter, float]]:
        """Each log-scale with its upper bound."""
        losses = self.config.losses
        found = {}
        if losses.parts:
            found["part"] = (self.part_log_scale, MAX_PART_LOG_SCALE)
        if losses.has_whole:
            found["whole"] = (self.whole_log_scale, MAX_WHOLE_LOG_SCALE[losses.whole])
        return found


def create_model(name_or_config: str | Path | Mapping[str, Any] | ModelConfig) -> CAFT:
    """A freshly initialised model for a recipe name (`caft_b`), a YAML file or a configuration.

    A superpixel network comes fitted, with the weights that the configuration names.

    Raises:
        ConfigError: no such recipe, a configuration that does not fit the schema, or no weights
            for the superpixel network.
    """
    model = CAFT(load_model_config(name_or_config))
    if model.superpixel_network is not None:
        superpixels = model.config.image.superpixels
        source = f"superpixels.weights: {superpixels.weights}"
        load_sfcn_weights(model.superpixel_network, read_sfcn_weights(superpixels), source)
    return model


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: cosines of half precision would tie."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _image_encoder(config: ModelConfig) -> ImageEncoder | FlatImageEncoder:
    image, activation = config.image, config.activation
    if isinstance(image, FlatImageConfig):
        return FlatImageEncoder(image, activation)
    return ImageEncoder(image, config.mask_dead_superpixels, config.losses.parts, activation)
