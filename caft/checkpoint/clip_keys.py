"""How other libraries name the parts of a CLIP, as our names for the same: OpenAI's and open_clip's
keys, and those of the transformers library for CLIP and SigLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Ours -> OpenAI's, by the beginning of a name.
OPENAI_KEYS = {
    "image_encoder.patch_embedding.": "visual.conv1.",
    "image_encoder.norm_in.": "visual.ln_pre.",
    "image_encoder.norm.": "visual.ln_post.",
    "image_encoder.blocks.": "visual.transformer.resblocks.",
    "part_text_encoder.blocks.": "transformer.resblocks.",
    "part_text_encoder.token_embedding.": "token_embedding.",
    "part_text_encoder.positions": "positional_embedding",
    "part_text_encoder.norm.": "ln_final.",
}
IN_BLOCK = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "expand.": "mlp.c_fc.",
    "contract.": "mlp.c_proj.",
}
# OpenAI's <- transformers', as regular expressions.
TRANSFORMERS = {
    r"vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    r"vision_model\.embeddings\.patch_embedding\.(\w+)": r"visual.conv1.\1",
    r"vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    r"vision_model\.pre_layrnorm\.(\w+)": r"visual.ln_pre.\1",
    r"vision_model\.post_layernorm\.(\w+)": r"visual.ln_post.\1",
    r"text_model\.embeddings\.token_embedding\.weight": "token_embedding.weight",
    r"text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"text_model\.final_layer_norm\.(\w+)": r"ln_final.\1",
}
TRANSFORMERS_BLOCK = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "self_attn.out_proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)")


def openai_key(ours: str, keys: Mapping[str, str] = OPENAI_KEYS) -> str:
    """OpenAI's key of one of our tensors, which begins with one of `keys`."""
    start = next(start for start in keys if ours.startswith(start))
    key = keys[start] + ours.removeprefix(start)
    if "resblocks." not in key:
        return key
    number, _, inner = key.partition("resblocks.")[2].partition(".")
    inside = next(start for start in IN_BLOCK if inner.startswith(start))
    return f"{keys[start]}{number}.{IN_BLOCK[inside]}{inner.removeprefix(inside)}"


def with_openai_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of CLIP or SigLIP under OpenAI's keys, whichever library saved them; what has no
    such name keeps its own."""
    found: dict[str, Tensor] = {}
    queries: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in weights.items():
        if key == "visual_projection.weight":
            found["visual.proj"] = value.T
        elif key == "text_projection.weight":
            found["text_projection"] = value.T
        elif match := LAYER.fullmatch(key):
            tower = "visual.transformer" if match[1] == "vision" else "transformer"
            block, inner = f"{tower}.resblocks.{match[2]}.", match[3]
            if part := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", inner):
                queries.setdefault((block, part[2]), {})[part[1]] = value
                continue
            start = next((s for s in TRANSFORMERS_BLOCK if inner.startswith(s)), None)
            rest = inner if start is None else TRANSFORMERS_BLOCK[start] + inner[len(start) :]
            found[block + rest] = value
        else:
            for pattern, name in TRANSFORMERS.items():
                if match := re.fullmatch(pattern, key):
                    key = match.expand(name)
                    break
            found[key] = value
    for (block, kind), parts in queries.items():
        if parts.keys() == set("qkv"):
            found[f"{block}attn.in_proj_{kind}"] = torch.cat([parts[name] for name in "qkv"])
    return found
