"""The model card of an exported checkpoint: Markdown with the front matter that the hub reads.
Names and notes come from configurations, so whatever they hold is shown as plain text."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from caft.config import ImageConfig
from caft.model import CAFT

PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")
SHOWN = {
    "crop": "the central square, the short side resized",
    "squash": "the whole picture, resized to a square",
}
SPLITTERS = {"default": "default splitter of CAFT", "reference": "published splitter"}
TAGS = ["caft", "image-text-retrieval", "long-captions", "contrastive-learning"]
UNKNOWN_LICENSE = {"license": "other", "license_name": "see-model-card"}


@dataclass(frozen=True)
class Card:
    """What a card tells."""

    model: CAFT
    manifest: Mapping[str, Any]  # of the checkpoint
    recipe: str | None  # YAML
    data_licences: Mapping[str, str]  # source -> note
    license_id: str | None


def model_card(card: Card) -> str:
    """The whole README.md."""
    sections = [
        f"---\n{_front_matter(card)}---",
        f"# {plain(card.model.config.name)}",
        _what_it_is(card.model),
        _how_to_load(card.model),
        _training(card),
        _licence(card),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line: no markup, HTML, link or table border."""
    return PUNCTUATION.sub(r"\\\g<0>", " ".join(str(text).split()))


def fenced(text: str, language: str) -> str:
    """A block of code that the text cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _front_matter(card: Card) -> str:
    licence = UNKNOWN_LICENSE if card.license_id is None else {"license": card.license_id}
    matter = {
        **licence,
        "library_name": "caft",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": TAGS,
        "language": ["en"],
    }
    return yaml.safe_dump(matter, sort_keys=False)


def _what_it_is(model: CAFT) -> str:
    image = model.config.image
    parameters = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        "CAFT aligns images with long captions at two levels: sentences with segments of the "
        "image, and the whole caption with the whole image.",
        "",
        f"- {parameters / 1e6:,.1f}M parameters, embeddings of {model.config.embed_dim} numbers",
        f"- images of {image.image_size_px} px: {SHOWN[image.preprocess]}",
    ]
    if isinstance(image, ImageConfig):
        segments = ", ".join(map(str, image.segments))
        lines.append(f"- {image.superpixel_count} superpixels, then {segments} segments")
    text = model.config.text
    lines.append(f"- captions of {text.chunks} chunks of up to {text.context_length} tokens")
    lines.append(f"- captions are split by the {SPLITTERS[text.sentences]}, as in training")
    if model.config.unit_queries:
        lines.append("- part scores by the published rule: sub-captions are normalised first")
    return "\n".join(lines)


def _how_to_load(model: CAFT) -> str:
    code = """\
import caft

model = caft.load_model("path/to/this/folder")
images = model.encode_image(["photo.jpg"])  # files, Pillow images, uint8 arrays or tensors
texts = model.encode_text(["A dog sleeps on a red sofa. A lamp stands behind it."])
scores = model.score(images, texts)  # (images, texts)"""
    note = "The weights are safetensors: nothing in this folder is run when it is loaded."
    other = """\
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("path/to/this/folder", trust_remote_code=True)
inputs = processor(images=["photo.jpg"], text=["A dog sleeps on a red sofa."])
scores = model(**inputs).logits_per_image  # (images, texts)"""
    without = "Without that package, `transformers` runs the model's code, which is in this folder:"
    blocks = [fenced(code, "python"), note, without, fenced(other, "python")]
    return "\n\n".join(["## How to load it", *blocks])


def _training(card: Card) -> str:
    manifest = card.manifest
    facts = {
        "steps": manifest.get("step"),
        "data fingerprint": manifest.get("dataset_fingerprint"),
    }
    sections = []
    if known := [(name, value) for name, value in facts.items() if value is not None]:
        sections.append(_table("training", "", known))
    if isinstance(metrics := manifest.get("metrics"), Mapping) and metrics:
        sections.append(_table("metric", "value", sorted(metrics.items())))
    if card.recipe is not None:
        sections.append("The recipe, which is `recipe.yaml` too:")
        sections.append(fenced(card.recipe, "yaml"))
    return "\n\n".join(["## Training", *sections]) if sections else ""


def _licence(card: Card) -> str:
    lines = ["## Licence", ""]
    if card.license_id is None:
        lines.append("No licence of the weights was named when they were exported.")
    else:
        lines.append(f"The weights: {plain(card.license_id)}.")
    if not card.data_licences:
        lines.append("What licences the training data has is not recorded here.")
        return "\n".join(lines)
    lines += ["What the dataset notes of its sources:", ""]
    return "\n".join([*lines, _table("source", "licence", card.data_licences.items())])


def _table(name: str, value: str, rows: Iterable[tuple[str, object]]) -> str:
    lines = [f"| {name} | {value} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {plain(key)} | {_shown(one)} |" for key, one in rows)])


def _shown(value: object) -> str:
    if isinstance(value, float):
        return plain(f"{value:.6g}")
    return plain(value)
