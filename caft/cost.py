"""What a model costs: parameters, multiply-adds and tokens of every module, from its configuration.
Run as `python -m caft.model describe NAME`; training divides by these numbers for its MFU."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from caft.config import FlatImageConfig, ImageConfig, ModelConfig, load_model_config
from caft.errors import CAFTError, ConfigError
from caft.model import CAFT
from caft.superpixels.network import NEIGHBOURS, WIDTHS
from caft.text_encoder import MLP_RATIO, adapter_width

SIDES = ("image", "text", "losses")
GIGA, MEGA = 1e9, 1e6
TRAINED_PASSES, FROZEN_PASSES = 3, 1  # forward, and backward at twice its cost


@dataclass(frozen=True)
class Workload:
    """What a training sample holds, beside its image."""

    text_tokens: float = 31  # mean length of a sub-caption, start and end included
    parts: int = 8  # K, sub-captions of a caption
    global_batch: int = 2048  # captions that an image is compared with
    block_size: int = 256


@dataclass(frozen=True)
class ModuleCost:
    """One row of the table. FLOP are of a forward pass on one sample; a multiply-add is two."""

    side: str  # image, text or losses
    name: str
    flop: float
    tokens: str  # into it, or into it -> out of it
    weights: tuple[str, ...]  # prefixes of its parameters' names
    frozen: bool = False
    parameters: int = 0


@dataclass(frozen=True)
class Flops:
    """FLOP of one training sample: an image, its sub-captions, and their share of the losses."""

    image: float
    text: float
    losses: float
    training: float  # forward and backward

    @property
    def forward(self) -> float:
        return self.image + self.text + self.losses


def flops(config: ModelConfig, workload: Workload = Workload()) -> Flops:
    """Useful FLOP of one training sample: matrix products and convolutions as the model defines
    them, on real tokens. What an implementation saves or does twice does not change them.

    Raises:
        ConfigError: fewer sub-captions than the model has chunks, or a batch of no whole blocks.
    """
    rows = list(_costs(config, workload))
    sides = {side: sum(row.flop for row in rows if row.side == side) for side in SIDES}
    passes = sum(row.flop * (FROZEN_PASSES if row.frozen else TRAINED_PASSES) for row in rows)
    return Flops(sides["image"], sides["text"], sides["losses"], passes)


def describe(config: ModelConfig, workload: Workload = Workload()) -> list[ModuleCost]:
    """The cost of every module, in the order in which data meets them; parameters add up to the
    model's, and to its frozen network's. Raises as `flops`."""
    with torch.device("meta"):
        model = CAFT(config)
    frozen = {
        name: buffer
        for name, buffer in model.named_buffers()
        if name.startswith("superpixel_network.") and name.endswith((".weight", ".bias"))
    }
    named = dict(model.named_parameters()) | frozen
    weights = {name: tensor.numel() for name, tensor in named.items()}
    return [
        replace(
            row, parameters=sum(n for name, n in weights.items() if name.startswith(row.weights))
        )
        for row in _costs(config, workload)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m caft.model")
    command = parser.add_subparsers(required=True).add_parser("describe", help=describe.__doc__)
    command.add_argument("model", metavar="NAME_OR_YAML", help="a recipe's name or a YAML file")
    command.add_argument("--text-tokens", type=float, default=Workload.text_tokens, metavar="T")
    command.add_argument("--parts", type=int, default=Workload.parts, metavar="K")
    command.add_argument("--global-batch", type=int, default=Workload.global_batch, metavar="N")
    command.add_argument("--block-size", type=int, default=Workload.block_size, metavar="N")
    args = parser.parse_args(argv)
    workload = Workload(args.text_tokens, args.parts, args.global_batch, args.block_size)
    try:
        config = load_model_config(args.model)
        print(_table(config, describe(config, workload), flops(config, workload)))
    except CAFTError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _table(config: ModelConfig, rows: list[ModuleCost], total: Flops) -> str:
    def line(name: str, parameters: int, flop: float, tokens: str = "") -> str:
        numbers = f"{parameters / MEGA:>11.3f}M{flop / GIGA:>10.3f}"
        return f"{name:<26}{numbers}  {tokens}".rstrip()

    lines = [config.name, "", f"{'module':<26}{'parameters':>12}{'GFLOP':>10}  tokens"]
    for side in SIDES:
        here = [row for row in rows if row.side == side]
        lines.append(line(side, _trained(here), getattr(total, side)))
        for row in here:
            name = f"  {row.name}" + ", frozen" * row.frozen
            lines.append(line(name, row.parameters, row.flop, row.tokens))
    lines.append(line("forward", _trained(rows), total.forward))
    lines += [
        "",
        f"GFLOP of one image and its sub-captions, forward; {total.training / GIGA:,.1f} with "
        "backward: a training sample. Sums of parameters are of trained ones.",
    ]
    return "\n".join(lines)


def _trained(rows: list[ModuleCost]) -> int:
    return sum(row.parameters for row in rows if not row.frozen)


def _costs(config: ModelConfig, workload: Workload) -> Iterator[ModuleCost]:
    """Rows without parameters."""
    losses, chunks = config.losses, config.text.chunks
    if losses.parts and workload.parts < chunks:
        raise ConfigError(f"parts {workload.parts}: a caption has its {chunks} chunks at least")
    if workload.global_batch % min(workload.block_size, workload.global_batch):
        raise ConfigError(
            f"global_batch {workload.global_batch} is not a multiple of block_size "
            f"{workload.block_size}"
        )
    if isinstance(config.image, FlatImageConfig):
        yield from _flat_costs(config.image)
        fine = coarse = config.image.superpixel_count
    else:
        yield from _fine_to_coarse_costs(config.image)
        fine, _, coarse = config.image.segments
    width, embed = config.image.width, config.embed_dim
    projected = losses.parts * (1 + fine) + losses.has_whole * (1 + coarse)
    yield ModuleCost(
        "image",
        "heads",
        _linear(projected, width, embed),
        f"{projected}",
        ("fine_projection", "coarse_projection"),
    )
    yield from _text_costs(config, workload)
    yield from _loss_costs(config, workload, fine)


def _fine_to_coarse_costs(image: ImageConfig) -> Iterator[ModuleCost]:
    if image.superpixels.method == "sfcn":
        yield ModuleCost(
            "image",
            "superpixel network",
            _sfcn(image.image_size_px**2),
            f"{image.image_size_px**2} px -> {image.superpixel_count}",
            ("superpixel_network.",),
            frozen=True,
        )
    side_px, width_in, flop = image.image_size_px, 3, 0.0
    for width, stride in zip(image.stem_widths, image.stem_strides, strict=True):
        side_px = -(-side_px // stride)
        flop += _linear(side_px**2, 9 * width_in, width)  # 3x3
        width_in = width
    flop += _linear(side_px**2, width_in, image.width)
    cells, count = side_px**2, image.superpixel_count
    yield ModuleCost("image", "stem", flop, f"{cells} -> {count}", ("image_encoder.stem",))
    width, counts = image.width, [count, *image.segments]
    hidden = int(width * image.mlp_ratio)
    last = len(image.group_depths) - 1
    for level, depth in enumerate(image.group_depths):
        tokens = 1 + counts[level]
        extra = {0: "cls_token", 1: "norm_fine", last: "norm_coarse"}.get(level)
        names = (f"image_encoder.groups.{level}.", *([f"image_encoder.{extra}"] if extra else []))
        flop = depth * _block(tokens, width, hidden)
        yield ModuleCost("image", f"group {level + 1}, {depth} blocks", flop, f"{tokens}", names)
        if level < last:
            before, after = counts[level : level + 2]
            yield ModuleCost(
                "image",
                f"pool {level + 1}",
                _pool(before, after, width, hidden),
                f"{before} -> {after}",
                (f"image_encoder.pools.{level}.",),
            )


def _sfcn(pixels: float) -> float:
    """The superpixel network: two 3x3 convolutions a level on the way down, a transposed 4x4 of
    stride 2 and a 3x3 on the way up, and a 3x3 to the neighbours."""
    flop, width_in = 0.0, 3
    for level, width in enumerate(WIDTHS):
        here = pixels / 4**level
        flop += _linear(here, 9 * width_in, width) + _linear(here, 9 * width, width)
        width_in = width
    for level, (width, wider) in enumerate(itertools.pairwise(WIDTHS)):
        here = pixels / 4**level
        flop += _linear(here, 4 * wider, width) + _linear(here, 9 * 2 * width, width)
    return flop + _linear(pixels, 9 * WIDTHS[0], NEIGHBOURS)


def _flat_costs(image: FlatImageConfig) -> Iterator[ModuleCost]:
    patches, width = image.superpixel_count, image.width
    outside = ("patch_embedding", "positions", "cls_token", "norm_in")
    yield ModuleCost(
        "image",
        "patch embedding",
        _linear(patches, 3 * image.patch_px**2, width),
        f"{patches}",
        tuple(f"image_encoder.{name}" for name in outside),
    )
    yield ModuleCost(
        "image",
        f"{image.depth} blocks",
        image.depth * _block(1 + patches, width, int(width * image.mlp_ratio)),
        f"{1 + patches}",
        ("image_encoder.blocks.", "image_encoder.norm."),
    )


def _text_costs(config: ModelConfig, workload: Workload) -> Iterator[ModuleCost]:
    text, losses = config.text, config.losses
    parts = workload.parts if losses.parts else text.chunks
    length = min(workload.text_tokens, text.context_length)
    width, hidden = text.width, int(text.width * MLP_RATIO)
    yield ModuleCost(
        "text",
        "part text",
        parts * text.layers * _block(length, width, hidden),
        f"{parts} x {length:g} -> {parts}",
        ("part_text_encoder.",),
    )
    if losses.has_whole and text.whole == "transformer":
        adapter = 2 * _linear(text.chunks, width, adapter_width(width))
        yield ModuleCost(
            "text",
            "whole text",
            adapter + text.whole_layers * _block(text.chunks + 1, width, hidden),
            f"{text.chunks} -> 1",
            ("whole_text_encoder.",),
        )
    projected = losses.parts * parts + losses.has_whole
    yield ModuleCost(
        "text",
        "heads",
        _linear(projected, width, config.embed_dim),
        f"{projected}",
        ("part_projection", "whole_projection"),
    )


def _loss_costs(config: ModelConfig, workload: Workload, fine: int) -> Iterator[ModuleCost]:
    losses, width = config.losses, config.embed_dim
    captions = workload.global_batch
    block = min(workload.block_size, captions)
    cosines = 0
    if losses.parts:
        columns = captions // block * (block + workload.parts - 1)  # sub-captions an image meets
        pooled = _attention(columns, fine + 1, width) + _linear(columns, width, width)
        projected = _linear(workload.parts + 2 * fine, width, width)  # queries; keys, values
        cosines = columns + captions * workload.parts
        yield ModuleCost(
            "losses",
            "pooling",
            projected + pooled,
            f"{fine} x {columns} -> {columns}",
            ("attention_pool.",),
        )
    cosines += {"sigmoid": 1, "softmax": 2, "none": 0}[losses.whole] * captions
    scales = ("part_log_scale", "part_bias", "whole_log_scale", "whole_bias")
    yield ModuleCost("losses", "logits", _linear(cosines, width, 1), f"{cosines}", scales)


def _linear(tokens: float, width_in: int, width_out: int) -> float:
    return 2 * tokens * width_in * width_out


def _attention(queries: float, keys: float, width: int) -> float:
    """Scores and weighted sums over all keys, causal or not."""
    return 4 * queries * keys * width


def _block(tokens: float, width: int, hidden: int) -> float:
    projections = _linear(tokens, width, 4 * width) + 2 * _linear(tokens, width, hidden)
    return projections + _attention(tokens, tokens, width)


def _pool(tokens: int, segments: int, width: int, hidden: int) -> float:
    """Grouping attention, cosines with the seeds, values and their means, with the cls token.

    Picking the seeds is no part of it: that is a search, and learns nothing.
    """
    grouping = _linear(tokens, width, 4 * width) + _attention(tokens, tokens, width)
    cosines = _linear(tokens, width, segments)
    values = _linear(tokens + 1, width, hidden) + _linear(segments + 1, hidden, width)
    return grouping + cosines + values + _linear(segments, tokens, hidden)


if __name__ == "__main__":
    sys.exit(main())
