"""The model on this device against numbers on file, in float32 and under bfloat16.
The numbers are those of tests/fixtures/golden_small, which the plain path computed on a CPU."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import caft
from caft.graph_pool import farthest_point_seeds
from caft.losses import caft_loss

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "golden_small"
# Of the largest value of each tensor: forward, and gradients. In float32 of the worst tensor. Under
# bfloat16 other tokens are picked as seeds, so what a single segment holds is left out, and of
# gradients the median tensor counts.
ALLOWED = {"float32": (1e-4, 1e-4), "bfloat16": (6e-2, 6e-2)}
OF_SEGMENTS = ("fine", "coarse")
FEATURES = {"fine": "fine", "fine_cls": "fine_cls", "coarse": "coarse", "whole": "whole_image"}
LOSSES = ("part_text_conditioned", "part_multi_positive", "whole", "total")


def parity(device: torch.device) -> dict[str, Any]:
    """Relative errors of features, scores, losses and gradients by precision, and whether the seeds
    of each level are those on file."""
    files = ("weights", "inputs", "outputs", "gradients")
    golden = {name: load_file(GOLDEN / f"{name}.safetensors") for name in files}
    config = json.loads((GOLDEN / "config.json").read_text())
    found: dict[str, Any] = {"seeds_equal": _seeds_equal(golden["outputs"], device)}
    torch.backends.cudnn.allow_tf32 = False  # else convolutions round to ten bits
    for precision, (forward, backward) in ALLOWED.items():
        low = precision == "bfloat16"
        errors, gradients = _errors(golden, config, device, low)
        if low:
            errors = {name: error for name, error in errors.items() if name not in OF_SEGMENTS}
        worst, of_gradients = max(errors.values()), (statistics.median if low else max)(gradients)
        found[precision] = {
            "forward": worst,
            "gradients": of_gradients,
            "worst": next(name for name, error in errors.items() if error == worst),
            "allowed": [forward, backward],
            "holds": worst < forward and of_gradients < backward,
        }
    return found


def _seeds_equal(outputs: dict[str, Tensor], device: torch.device) -> bool:
    equal = []
    for level in (1, 2, 3):
        live = ~outputs["dead"].bool().to(device) if level == 1 else None
        due = outputs[f"seed_indices{level}"]
        tokens = outputs[f"block{level}"][:, 1:].to(device)
        seeds = farthest_point_seeds(tokens, due.shape[1], live, keep_dead=True)
        equal.append(torch.equal(seeds.cpu(), due))
    return all(equal)


def _errors(
    golden: dict[str, dict[str, Tensor]], config: dict[str, Any], device: torch.device, low: bool
) -> tuple[dict[str, float], list[float]]:
    inputs, outputs = golden["inputs"], golden["outputs"]
    model = caft.from_reference(golden["weights"], config).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
        images, texts = model(
            inputs["images_uint8"].to(device),
            inputs["tokens"].long(),
            inputs["superpixels"].to(device),
        )
        loss = caft_loss(images, texts, model, negatives=inputs["negatives"].long())
        with torch.no_grad():
            scores = model.score(images, texts)
    ours = {name: getattr(images, field) for field, name in FEATURES.items()}
    ours |= {"part_text": texts.parts, "whole_text": texts.whole, "score_blend_0_3": scores}
    ours |= {f"loss_{name}": getattr(loss, name) for name in LOSSES}
    loss.total.backward()
    with_gradients = caft.from_reference(golden["weights"] | golden["gradients"], config)
    weights = dict(model.named_parameters())
    gradients = []
    for name, due in with_gradients.named_parameters():
        gradient = weights[name].grad
        if gradient is not None and not torch.equal(due, weights[name].detach().cpu()):
            gradients.append(_relative(gradient, due.detach()))
    return {name: _relative(value, outputs[name]) for name, value in ours.items()}, gradients


def _relative(ours: Tensor, due: Tensor) -> float:
    return ((ours.detach().cpu().float() - due).abs().max() / due.abs().max()).item()
