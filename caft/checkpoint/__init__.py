"""Checkpoint folders: weights as safetensors, the configuration beside them, a manifest last.
Written by training, read by everything else; nothing in here executes a pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from caft.checkpoint.released import RELEASED_SUFFIXES, load_released
from caft.config import ModelConfig, merged, read_yaml, to_yaml, validate
from caft.errors import CheckpointError, StorageError
from caft.model import CAFT

WEIGHTS, CONFIG, MANIFEST, TRAINING_STATE = (
    "model.safetensors",
    "config.yaml",
    "manifest.json",
    "training_state",
)
FORMAT_VERSION = 1
CONFIG_METADATA_KEY = "caft_config"
CONVERTED_FROM = "converted_from"  # the entry of a manifest that names a converted file
EXPORTED_FROM = "exported_from"  # the entry that tells an export from a checkpoint
# What a stored configuration that lacks these keys means where its weights are released ones:
# they were converted before there were such keys. Runs of ours mean the schema's defaults.
RELEASED_RULES = {
    "unit_queries": True,
    "image": {"preprocess": "crop"},
    "text": {"sentences": "reference"},
}


def load_model(path: str | Path, config: Mapping[str, Any] | None = None) -> CAFT:
    """Load a checkpoint folder, a single `.safetensors` file or a released `.pt`, in eval mode.

    A released file gives the released numbers: it keeps the reference's quirks.

    Args:
        config: for released files alone, which hold none: the released configuration
            (`embed_dim`, `vision_cfg`, ...). None: that in `NAME.json` beside `NAME.pt`, else a
            CAFT-B, in the sizes that the weights have.

    Raises:
        CheckpointError: nothing there, a folder without its manifest (training did not finish
            writing it), a file that is damaged or holds more than tensors, or weights that do not
            fit the configuration.
    """
    path = Path(path)
    if path.is_file() and path.suffix in RELEASED_SUFFIXES:
        return load_released(path, config)
    if config is not None:
        raise CheckpointError(f"{path}: has its own configuration; only released files take one")
    if path.is_dir():
        manifest = read_manifest(path)
        model = CAFT(stored_config(read_yaml(path / CONFIG), manifest, str(path / CONFIG)))
        load_weights(model, path / WEIGHTS)
    elif path.is_file() and path.suffix == ".safetensors":
        model = CAFT(_embedded_config(path))
        load_weights(model, path)
    else:
        known = ", ".join((".safetensors", *RELEASED_SUFFIXES))
        raise CheckpointError(f"{path}: no checkpoint folder and no file of {known}")
    return model.eval()


def convert(path: str | Path, folder: str | Path, config: Mapping[str, Any] | None = None) -> CAFT:
    """Write anything `load_model` reads as a checkpoint folder, and return its model.

    Raises:
        CheckpointError: as `load_model`, or `folder` exists and is not empty.
        StorageError: `folder` cannot be written.
    """
    path, folder = Path(path), Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is no empty folder; name another")
    model = load_model(path, config)
    try:
        save_weights(model, folder)
        source = {"name": path.name}
        if path.is_file():
            source["sha256"] = sha256_of(path)
        write_manifest(folder, {CONVERTED_FROM: source})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: cannot be written: {error}") from None
    return model


def stored_config(raw: Mapping[str, Any], manifest: Mapping[str, Any], source: str) -> ModelConfig:
    """The configuration stored with a checkpoint, as it was meant when it was stored.

    Args:
        raw: as it was written.
        manifest: of the checkpoint; empty where there is none.
        source: what messages call the configuration.

    Raises:
        ConfigError: it does not fit the schema.
    """
    released = _was_released(raw, manifest)
    return validate(ModelConfig, merged(RELEASED_RULES, raw) if released else raw, source=source)


def save_weights(model: CAFT, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write weights and configuration into `folder`; `write_manifest` completes the checkpoint.

    Args:
        weights: the state of a model that is cut up over workers; None: `model` has all of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if weights is None else weights
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config = to_yaml(model.config)
    save_file(weights, folder / WEIGHTS, metadata={CONFIG_METADATA_KEY: config})
    (folder / CONFIG).write_text(config, encoding="utf-8")


def write_manifest(folder: Path, info: dict[str, Any], names: Sequence[str] | None = None) -> None:
    """Seal a checkpoint folder: the digest of its files, plus `info`, in manifest.json.

    Args:
        names: the files that are the checkpoint; None: all that there are.
    """
    every = (file for file in sorted(folder.rglob("*")) if file.name != MANIFEST)
    sealed = every if names is None else (folder / name for name in names)
    files = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sealed
        if file.is_file()
    }
    manifest = {"format": "caft-checkpoint", "version": FORMAT_VERSION, **info, "files": files}
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    temporary.replace(folder / MANIFEST)


def read_manifest(folder: str | Path, verify: bool = False) -> dict[str, Any]:
    """Return a checkpoint's manifest after checking that its files are all there and whole.

    Sizes are always compared; `verify` compares digests too.

    Raises:
        CheckpointError: no manifest, or a file that is missing or not as it was written.
    """
    folder = Path(folder)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {MANIFEST}, so this is no finished checkpoint; use an earlier one"
        ) from None
    except ValueError:
        raise CheckpointError(f"{folder / MANIFEST}: not valid JSON; use an earlier one") from None
    for name, entry in manifest.get("files", {}).items():
        file = folder / name
        if not file.exists():
            raise CheckpointError(f"{file}: missing, but the manifest lists it")
        if file.stat().st_size != entry["bytes"] or (verify and sha256_of(file) != entry["sha256"]):
            raise CheckpointError(f"{file}: damaged, its size or digest is not the manifest's")
    return manifest


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a safetensors file into `model`, naming every key or shape that does not fit.

    Raises:
        CheckpointError: the file is damaged, or was made by another model configuration.
    """
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors: {error}") from None
    ours = model.state_dict()
    problems = [f"missing '{name}'" for name in ours.keys() - weights.keys()]
    problems += [f"surplus '{name}'" for name in weights.keys() - ours.keys()]
    problems += [
        f"'{name}' is {tuple(weights[name].shape)} there, {tuple(ours[name].shape)} in the model"
        for name in ours.keys() & weights.keys()
        if ours[name].shape != weights[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:3])
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{file}: does not fit the model configuration: {shown}{more}")
    model.load_state_dict(weights)


def sha256_of(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _was_released(raw: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's weights come from a released file and were not trained on since.

    A folder that was converted or exported twice, or a file alone, does not name that file; then
    the quirks tell, which a run of ours has no reason to keep.
    """
    if "step" in manifest:
        return False
    converted = manifest.get(CONVERTED_FROM)
    name = converted.get("name") if isinstance(converted, Mapping) else None
    origin = str(name or manifest.get(EXPORTED_FROM) or "")
    if Path(origin).suffix in RELEASED_SUFFIXES:
        return True
    image = raw.get("image")
    cut = image.get("superpixels") if isinstance(image, Mapping) else None
    keeps_colours = isinstance(cut, Mapping) and (
        cut.get("method") != "sfcn" or cut.get("unnormalise_with") == "imagenet"
    )
    return raw.get("mask_dead_superpixels") is False and keeps_colours


def _embedded_config(file: Path) -> ModelConfig:
    """The configuration that `save_weights` put into the file's own metadata."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as stream:
            text = (stream.metadata() or {}).get(CONFIG_METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors: {error}") from None
    if text is None:
        raise CheckpointError(f"{file}: holds no model configuration; load its folder instead")
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{file}: its model configuration is not valid YAML: {reason}"
        ) from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: its model configuration is no mapping of keys")
    return stored_config(raw, _manifest_of(file), str(file))


def _manifest_of(file: Path) -> dict[str, Any]:
    """The manifest of the checkpoint folder that a file is part of; empty for a file alone."""
    try:
        known = read_manifest(file.parent)
    except CheckpointError:
        return {}
    return known if file.name in known.get("files", {}) else {}
