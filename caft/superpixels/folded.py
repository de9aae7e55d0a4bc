"""SFCN as GPUs run it fastest: norms folded into convolutions, half precision, channels last.
Between the frozen network and its labels; on CPUs the network itself is as fast."""

from __future__ import annotations

import copy
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from caft.superpixels.network import SFCN, StoredNorm

# Ten bits of fraction, as TF32 has them, in which GPUs multiply float32 by default.
FOLDED_DTYPE = torch.float16
_known: WeakKeyDictionary[SFCN, tuple[tuple[tuple[int, int], ...], SFCN]] = WeakKeyDictionary()


def folded(network: SFCN, dtype: torch.dtype = FOLDED_DTYPE) -> SFCN:
    """A copy of a frozen network with nearly its probabilities: without norms, in `dtype`, with
    channels last. It is made anew once the weights have changed."""
    made_of = tuple((id(buffer), buffer._version) for buffer in network.buffers())
    known = _known.get(network)
    if known is None or known[0] != made_of or known[1].dtype != dtype:
        known = _known[network] = (made_of, _without_norms(network).to(dtype))
    return known[1]


def _without_norms(network: SFCN) -> SFCN:
    copied = copy.deepcopy(network)
    for stage in copied.children():
        if isinstance(stage, nn.Sequential) and isinstance(stage[1], StoredNorm):
            stage[0] = _joined(stage[0], stage[1])
            del stage[1]
    for buffer in copied.buffers():
        if buffer.ndim == 4:
            buffer.data = buffer.contiguous(memory_format=torch.channels_last)
    return copied


def _joined(conv: nn.Module, norm: StoredNorm) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    joined = copy.deepcopy(conv)
    for name, value in (("weight", weight), ("bias", bias)):
        delattr(joined, name)
        joined.register_buffer(name, value.detach())
    return joined
