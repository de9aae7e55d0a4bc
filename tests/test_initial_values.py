"""A new CAFT-B starts as the published one does: every kind of parameter, by spread and mean."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from tests_support import tiny_config

from caft.config import load_model_config
from caft.model import CAFT

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "initial_values_caft_b.json"
BOUNDED = 3.0  # largest value in standard deviations: a normal one of many numbers has more


def by_kind(model: CAFT) -> dict[str, torch.Tensor]:
    """The parameters of all layers of a kind, end to end; N stands for a number in a name."""
    kinds = defaultdict(list)
    for name, parameter in model.named_parameters():
        kinds[re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name)].append(parameter.detach().flatten())
    return {kind: torch.cat(values) for kind, values in kinds.items()}


@pytest.mark.skipif(not PUBLISHED.exists(), reason="reference numbers are not here")
def test_every_kind_of_parameter_of_caft_b_starts_as_published():
    torch.manual_seed(0)
    ours = by_kind(CAFT(load_model_config("caft_b")))
    expected = json.loads(PUBLISHED.read_text())["parameters"]
    assert ours.keys() == expected.keys()
    for kind, values in ours.items():
        numbers, mean, std, largest = expected[kind].values()
        assert len(values) == numbers, kind
        assert values.std(correction=0).item() == pytest.approx(std, rel=0.05, abs=1e-9), kind
        rounding = 5 * std * numbers**-0.5  # of the means of two random draws
        assert values.mean().item() == pytest.approx(mean, rel=0.05, abs=rounding + 1e-9), kind
        if largest < BOUNDED * std or not std:
            assert values.abs().max().item() == pytest.approx(largest, rel=0.05, abs=1e-9), kind


def test_cls_token_group_bias_and_attention_pool_start_spread():
    torch.manual_seed(0)
    model = CAFT(tiny_config(embed_dim=64))
    assert model.image_encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.4)
    biases = torch.cat([pool.group_bias.detach() for pool in model.image_encoder.pools])
    assert biases.std().item() == pytest.approx(0.01, rel=0.4)
    bound = (6 / (4 * 64)) ** 0.5  # of Xavier for the packed 192 x 64 matrix
    for name in ("to_q", "to_k", "to_v"):
        largest = getattr(model.attention_pool, name).weight.abs().max().item()
        assert 0.98 * bound < largest <= bound
