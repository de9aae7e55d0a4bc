"""Checkpoint folders: weights as safetensors, the configuration beside them, a manifest last.
Written by training, read by everything else; nothing in here executes a pickle."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from caft.checkpoint.manifest import (
    CONFIG,
    MANIFEST,
    TRAINING_STATE,
    WEIGHTS,
    read_manifest,
    sha256_of,
    write_manifest,
)
from caft.checkpoint.released import load_released
from caft.config import ModelConfig, read_yaml, to_yaml, validate
from caft.documents import parse_yaml
from caft.errors import CheckpointError, ConfigError, StorageError
from caft.model import CAFT
from caft.overrides import merged
from caft.state_dicts import misfit, plain_weights
from caft.torch_files import RELEASED_SUFFIXES

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

__all__ = [
    "CONFIG",
    "EXPORTED_FROM",
    "MANIFEST",
    "TRAINING_STATE",
    "WEIGHTS",
    "convert",
    "load_model",
    "load_weights",
    "read_manifest",
    "require_new",
    "save_tensors",
    "save_weights",
    "sha256_of",
    "stored_config",
    "write_checkpoint",
    "write_manifest",
]


def load_model(
    path: str | Path,
    config: Mapping[str, Any] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> CAFT:
    """Load a checkpoint folder, a single `.safetensors` file or a released `.pt`, in eval mode.

    A released file gives the released numbers: it keeps the reference's quirks. A folder's files
    are compared with the digests in its manifest.

    Args:
        config: for released files alone, which hold none: the released configuration
            (`embed_dim`, `vision_cfg`, ...). None: that in `NAME.json` beside `NAME.pt`, else a
            CAFT-B, in the sizes that the weights have.
        device: where the model is put, as in `model.to`; None: the CPU.
        dtype: of its weights, such as `torch.bfloat16`; None: float32.

    Raises:
        CheckpointError: nothing there, a folder without its manifest (training did not finish
            writing it), a file that is damaged or holds more than tensors, or weights that do not
            fit the configuration.
        ConfigError: no such device here, or a dtype that is no float.
    """
    path, device = Path(path), _usable_device(device)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype: {dtype!r} is no type of floats such as torch.bfloat16")
    model = _load(path, config).eval()
    return model.to(device=device, dtype=dtype)


def _load(path: Path, config: Mapping[str, Any] | None) -> CAFT:
    if path.is_file() and path.suffix in RELEASED_SUFFIXES:
        return load_released(path, config)
    if config is not None:
        raise CheckpointError(f"{path}: has its own configuration; only released files take one")
    if path.is_dir():
        manifest = read_manifest(path, verify=(WEIGHTS, CONFIG))
        model = CAFT(stored_config(read_yaml(path / CONFIG), manifest, str(path / CONFIG)))
        if not {WEIGHTS, CONFIG} <= manifest["files"].keys():
            raise CheckpointError(f"{path / MANIFEST}: does not list {WEIGHTS} and {CONFIG}")
        load_weights(model, path / WEIGHTS)
    elif path.is_file() and path.suffix == ".safetensors":
        model = CAFT(_embedded_config(path))
        load_weights(model, path)
    else:
        known = ", ".join((".safetensors", *RELEASED_SUFFIXES))
        raise CheckpointError(f"{path}: no checkpoint folder and no file of {known}")
    return model


def _usable_device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        usable = torch.device(device)
        torch.empty(0, device=usable)
    except Exception as error:  # of a type that depends on the device
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"device: {device!r} cannot be used here: {reason}") from None
    return usable


def convert(path: str | Path, folder: str | Path, config: Mapping[str, Any] | None = None) -> CAFT:
    """Write anything `load_model` reads as a checkpoint folder, and return its model.

    Raises:
        CheckpointError: as `load_model`, or `folder` exists and is not empty.
        StorageError: `folder` cannot be written.
    """
    path, folder = Path(path), Path(folder)
    require_new(folder)
    model = load_model(path, config)
    source = {"name": path.name}
    if path.is_file():
        source["sha256"] = sha256_of(path)
    write_checkpoint(model, folder, {CONVERTED_FROM: source})
    return model


def require_new(folder: Path) -> None:
    """Raises CheckpointError where a new checkpoint's folder is there and not empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is no empty folder; name another")


def write_checkpoint(model: CAFT, folder: Path, info: Mapping[str, Any]) -> None:
    """Write a model as a complete checkpoint folder, with `info` in its manifest.

    Raises:
        StorageError: `folder` cannot be written.
    """
    try:
        save_weights(model, folder)
        write_manifest(folder, dict(info))
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: cannot be written: {error}") from None


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
    save_tensors(weights, folder / WEIGHTS, {CONFIG_METADATA_KEY: config})
    (folder / CONFIG).write_text(config, encoding="utf-8")


def save_tensors(
    tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file that others may read as any new file here: with the mode that the
    process's umask gives, where the library's own is 0600."""
    file.touch()
    mode = file.stat().st_mode
    save_file(dict(tensors), file, metadata=None if metadata is None else dict(metadata))
    file.chmod(stat.S_IMODE(mode))


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a safetensors file into `model`, naming every key or shape that does not fit.

    Raises:
        CheckpointError: the file is damaged, or was made by another model configuration.
    """
    try:
        weights = plain_weights(load_file(file))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except Exception as error:  # a damaged header may fail in any way
        raise _unreadable(file, error) from None
    ours = model.state_dict()
    problems = [f"missing '{name}'" for name in ours.keys() - weights.keys()]
    problems += [f"surplus '{name}'" for name in weights.keys() - ours.keys()]
    for name in ours.keys() & weights.keys():
        there, here = weights[name], ours[name]
        if problem := misfit(name, there, here):
            problems.append(problem)
        elif there.shape != here.shape:
            problems.append(
                f"'{name}' is {tuple(there.shape)} there, {tuple(here.shape)} in the model"
            )
    if problems:
        shown = "; ".join(sorted(problems)[:3])
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{file}: does not fit the model configuration: {shown}{more}")
    model.load_state_dict(weights)


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
    except Exception as error:  # a damaged header may fail in any way
        raise _unreadable(file, error) from None
    if text is None:
        raise CheckpointError(f"{file}: holds no model configuration; load its folder instead")
    raw = parse_yaml(text, f"{file}: its model configuration", CheckpointError)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: its model configuration is no mapping of keys")
    return stored_config(raw, _manifest_of(file), str(file))


def _manifest_of(file: Path) -> dict[str, Any]:
    """The manifest of the checkpoint folder that a file is part of; empty for a file alone."""
    try:
        known = read_manifest(file.parent)
    except CheckpointError:
        return {}
    return known if file.name in known["files"] else {}


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"{file}: cannot be read as safetensors: {reason}")
