"""The manifest that completes a checkpoint folder: which files it has, with sizes and digests.
Written last, so that a folder without one was never finished; read before anything else is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from caft.documents import MAX_MANIFEST_BYTES, parse_json, read_text
from caft.durable import sync
from caft.errors import CheckpointError

WEIGHTS, CONFIG, MANIFEST, TRAINING_STATE = (
    "model.safetensors",
    "config.yaml",
    "manifest.json",
    "training_state",
)
FORMAT, FORMAT_VERSION = "caft-checkpoint", 1
OWN_DIGEST = "manifest_sha256"  # of the manifest's other entries; older ones have none


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
    manifest = {"format": FORMAT, "version": FORMAT_VERSION, **info, "files": files}
    manifest[OWN_DIGEST] = _own_digest(manifest)
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    # On the disk in this order, so that a machine that loses its power leaves no manifest of files
    # that are not there.
    for path in [*(folder / name for name in files), temporary, *_folders_of(folder, files)]:
        sync(path)
    temporary.replace(folder / MANIFEST)
    sync(folder)


def read_manifest(folder: str | Path, verify: bool | Collection[str] = False) -> dict[str, Any]:
    """Return a checkpoint's manifest after checking that its files are all there and complete.

    Args:
        verify: the files whose digests are compared too; True: all. Sizes always are.

    Raises:
        CheckpointError: no manifest, one that is damaged or of another shape, or a file that is
            missing or not as it was written.
    """
    folder = Path(folder)
    place = folder / MANIFEST
    try:
        text = read_text(place, CheckpointError, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {MANIFEST}, so this is no finished checkpoint; use an earlier one"
        ) from None
    manifest = parse_json(text, f"{place}: use an earlier checkpoint", CheckpointError)
    if problem := _misshapen(manifest):
        raise CheckpointError(f"{place}: {problem}; use an earlier checkpoint")
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing, but the manifest lists it")
        digest = verify if isinstance(verify, bool) else name in verify
        if file.stat().st_size != entry["bytes"] or (digest and sha256_of(file) != entry["sha256"]):
            raise CheckpointError(f"{file}: damaged, its size or digest is not the manifest's")
    return manifest


def sha256_of(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _own_digest(manifest: dict[str, Any]) -> str:
    """Of a manifest's other entries, however they are laid out as text."""
    rest = {key: value for key, value in manifest.items() if key != OWN_DIGEST}
    as_read = json.loads(json.dumps(rest))  # keys are texts there, whatever they were
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _folders_of(folder: Path, files: Collection[str]) -> list[Path]:
    """All folders that files are in, the innermost first."""
    inside = {parent for name in files for parent in PurePosixPath(name).parents}
    return [folder / path for path in sorted(inside, reverse=True)]


def _misshapen(manifest: Any) -> str | None:
    """What a manifest lacks, of what `write_manifest` gives every one."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return f"no manifest of a checkpoint, 'format' is not '{FORMAT}'"
    if manifest.get("version") != FORMAT_VERSION:
        return f"version {str(manifest.get('version'))[:20]!r}, not {FORMAT_VERSION}"
    if manifest.get(OWN_DIGEST, own := _own_digest(manifest)) != own:
        return "damaged, its digest is not its own"
    files = manifest.get("files")
    if not isinstance(files, dict):
        return "'files' is no list of files with sizes and digests"
    for name, entry in files.items():
        place = PurePosixPath(name)
        known = isinstance(entry, dict) and isinstance(entry.get("bytes"), int)
        if not known or not isinstance(entry.get("sha256"), str):
            return f"'files' gives no size and digest of '{name[:100]}'"
        if place.is_absolute() or ".." in place.parts:
            return f"'files' names '{name[:100]}', outside the folder"
    return None
