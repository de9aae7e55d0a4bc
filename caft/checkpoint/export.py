"""A checkpoint as a folder to publish: weights, configurations and a model card, without pickles.
Behind `python -m caft.checkpoint export`; `caft.load_model` reads the folder as any checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from safetensors import SafetensorError

from caft.checkpoint import (
    CONFIG,
    EXPORTED_FROM,
    MANIFEST,
    WEIGHTS,
    load_model,
    read_manifest,
    save_weights,
    write_manifest,
)
from caft.checkpoint.card import Card, model_card
from caft.documents import MAX_MANIFEST_BYTES, parse_json, parse_yaml, read_text
from caft.errors import CheckpointError, ConfigError, StorageError
from caft.hub.sources import AUTO_MAP, write_sources
from caft.model import CAFT
from caft.tokenizer import tokenizer_file

CONFIG_JSON, CARD, RECIPE = "config.json", "README.md", "recipe.yaml"
TOKENIZER = "tokenizer.json"
# The manifest's files, beside the sources; a card is there to be edited.
SEALED = (WEIGHTS, CONFIG, CONFIG_JSON, TOKENIZER)
PUBLISHED = ("step", "dataset_fingerprint", "metrics")  # entries that an export keeps
REPOSITORY_FILES = {".git", ".gitattributes", ".gitignore"}  # of a fresh clone
TRAIN_CONFIG = "train.yaml"  # what the train stage calls its resolved configuration
OF_THE_MACHINE = ("output", "tracking", "progress_every_s")  # settings that are no recipe
LICENSE_ID = re.compile(r"[A-Za-z0-9.+-]+")


def export(path: str | Path, folder: str | Path, license_id: str | None = None) -> CAFT:
    """Write anything `load_model` reads as a folder in the layout of Hugging Face's hub.

    Args:
        folder: new, empty, the fresh clone of a repository, or an earlier export, of which all
            but the repository's own files is written anew.
        license_id: of the weights, as the hub spells it ('cc-by-4.0'). None: 'other', and the
            card gives what the dataset says of its sources.

    Raises:
        ConfigError: `license_id` is no identifier.
        CheckpointError: as `load_model`, a damaged file, or `folder` holds anything else.
        StorageError: `folder` cannot be written.
    """
    path, folder = Path(path), Path(folder)
    if license_id is not None and not LICENSE_ID.fullmatch(license_id):
        raise ConfigError(
            f"license: '{license_id}' is no identifier of a licence; "
            "give one as the hub lists them, such as cc-by-4.0"
        )
    _require_free(folder)
    manifest = read_manifest(path, verify=True) if path.is_dir() else {}
    model = load_model(path)
    recipe = _recipe(path)
    card = Card(model, manifest, recipe, _data_licences(manifest), license_id)
    settings = model.config.model_dump(mode="json")
    classes = {"architectures": ["CAFTModel"], "auto_map": AUTO_MAP}
    config = {"model_type": "caft", **classes, "caft": settings}
    published = {key: manifest[key] for key in PUBLISHED if key in manifest}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # until the last line this is no checkpoint
        (folder / RECIPE).unlink(missing_ok=True)
        save_weights(model, folder)
        (folder / CONFIG_JSON).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        sources = write_sources(folder)
        shutil.copyfile(tokenizer_file(model.config.text.tokenizer), folder / TOKENIZER)
        if recipe is not None:
            (folder / RECIPE).write_text(recipe, encoding="utf-8")
        (folder / CARD).write_text(model_card(card), encoding="utf-8")
        write_manifest(folder, {EXPORTED_FROM: path.name, **published}, (*SEALED, *sources))
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: cannot be written: {error}") from None
    return model


def _require_free(folder: Path) -> None:
    if not folder.exists():
        return
    if folder.is_dir():
        if {entry.name for entry in folder.iterdir()} <= REPOSITORY_FILES:
            return
        if EXPORTED_FROM in _read_json(folder / MANIFEST):
            return
    raise CheckpointError(f"{folder}: exists and is neither empty nor an export; name another")


def _recipe(path: Path) -> str | None:
    """The training configuration that lies beside or above a checkpoint, or in an export."""
    beside = [path / RECIPE, *(parent / TRAIN_CONFIG for parent in list(path.parents)[:2])]
    file = next((file for file in beside if file.is_file()), None)
    if file is None:
        return None
    try:
        recipe = parse_yaml(read_text(file, CheckpointError), str(file), CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove it") from None
    if not isinstance(recipe, dict):
        raise CheckpointError(f"{file}: holds no training configuration; remove it")
    kept = {key: value for key, value in recipe.items() if key not in OF_THE_MACHINE}
    if isinstance(kept.get("dataset"), str):
        kept["dataset"] = PurePosixPath(kept["dataset"]).name
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _data_licences(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What the dataset a model was trained on says of each source's licence, if it is at hand."""
    dataset = _read_json(Path(str(manifest.get("dataset", ""))) / MANIFEST)
    sources = dataset.get("sources")
    if not isinstance(sources, dict):
        return {}
    notes = {name: s.get("licence") for name, s in sources.items() if isinstance(s, dict)}
    return {name: str(note) for name, note in notes.items() if note}


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        text = read_text(file, CheckpointError, MAX_MANIFEST_BYTES)
        value = parse_json(text, str(file), CheckpointError)
    except (OSError, CheckpointError):
        return {}
    return value if isinstance(value, dict) else {}
