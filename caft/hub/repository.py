"""Models on Hugging Face's hub: fetched by name, published with a model card.
Folders that `caft.checkpoint.export` writes; the hub's own client does the transfers."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from caft.checkpoint import MANIFEST, load_model, save_weights, write_manifest
from caft.checkpoint.export import export
from caft.documents import parse_json, read_text
from caft.errors import CheckpointError, ConfigError, StorageError
from caft.model import CAFT

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def from_pretrained(
    name: str | Path,
    *,
    filename: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> CAFT:
    """Load a model from a folder, a file, or a repository of the hub such as `org/name`.

    Nothing of a repository is run: its weights are safetensors, or a released file that is read
    without executing its pickle.

    Args:
        filename: of a repository that holds another checkpoint than an export, its file, such as
            `CAFT-30M.pt`.
        revision: branch, tag or commit; None: the main branch.
        token: None: that of `hf auth login`, or of the environment variable HF_TOKEN.
        device, dtype: as in `load_model`.

    Raises:
        CheckpointError: no such folder, repository, revision or file, or as `load_model`.
        StorageError: the hub cannot be reached, and the model was not fetched before.
    """
    path = Path(name)
    if not path.exists():
        if not REPOSITORY.fullmatch(str(name)):
            raise CheckpointError(f"{name}: no such folder or file, and no repository 'org/name'")
        path = _fetch(str(name), filename, revision, token)
    elif filename is not None:
        path = path / filename
    return load_model(path, device=device, dtype=dtype)


def push_to_hub(
    checkpoint: CAFT | str | Path,
    repository: str,
    *,
    license_id: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Export a model or a checkpoint and upload it as one commit; the page's address.

    Args:
        checkpoint: a model, or anything `load_model` reads; a checkpoint has a recipe, metrics and
            licences for the card, which a bare model lacks.
        repository: `org/name`; it is made if it is not there.
        license_id: of the weights; see `export`.
        private: of a repository that is made.
        token: as in `from_pretrained`.

    Raises:
        ConfigError: no name of a repository, or a licence that is no identifier.
        CheckpointError: as `export`.
        StorageError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    if not REPOSITORY.fullmatch(repository):
        raise ConfigError(f"'{repository}' is no name of a repository; write org/name")
    with tempfile.TemporaryDirectory(prefix="caft-hub-") as temporary:
        if isinstance(checkpoint, CAFT):
            source = Path(temporary) / checkpoint.config.name
            save_weights(checkpoint, source)
            write_manifest(source, {})
            checkpoint = source
        folder = Path(temporary) / "export"
        export(checkpoint, folder, license_id)
        api = HfApi(token=token)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            message = f"Upload {Path(checkpoint).name} with CAFT"
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        except Exception as error:  # httpx's, the hub's own, OSError
            raise StorageError(f"{repository}: {_first_line(error)}") from None
    return f"{api.endpoint}/{repository}"


def _fetch(name: str, filename: str | None, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where: dict[str, Any] = {"revision": revision, "token": token}
    at = f" at {revision}" if revision else ""
    try:
        file = Path(hf_hub_download(name, filename or MANIFEST, **where))
        if filename is not None:
            return file
        sealed = parse_json(
            read_text(file, CheckpointError), f"{name}: {MANIFEST}", CheckpointError
        )
        wanted = [MANIFEST, *sealed.get("files", ())]
        return Path(snapshot_download(name, allow_patterns=wanted, **where))
    except CheckpointError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        kind = "revision" if isinstance(error, RevisionNotFoundError) else "repository"
        raise CheckpointError(
            f"{name}{at}: the hub has no such {kind}, or it is private and no token opens it"
        ) from None
    except LocalEntryNotFoundError as error:
        raise StorageError(f"{name}{at}: not fetched before, and {_first_line(error)}") from None
    except EntryNotFoundError:
        if filename is not None:
            raise CheckpointError(f"{name}{at}: has no file {filename}") from None
        raise CheckpointError(
            f"{name}{at}: has no {MANIFEST}, so it is no export of CAFT; name a checkpoint in it "
            "with filename="
        ) from None
    except Exception as error:  # httpx's, the hub's own, OSError
        raise StorageError(f"{name}{at}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
