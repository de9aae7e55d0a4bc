"""Writes one HTML page about a finished dataset: counts, histograms, failing hosts, galleries.
Written beside the manifest at the end of the stage and of a retry; `stats PATH` writes it again."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from caft.errors import DataError
from pipelines import storage, user_paths
from pipelines.data.dataset import MANIFEST, Dataset, FileEntry, RejectsEntry, open_dataset
from pipelines.data.reasons import REASONS, Reason
from pipelines.data.stats_rejects import read_rejects
from pipelines.data.stats_rows import bytes_text, pair_pictures, sample_kept
from pipelines.tracking import Tracker

PAGE = "stats.html"
SHOWN = 20  # names in one cell of a table
BROKEN_SHARE = 0.1  # of a source's rows, from which on the page warns
LEAST_JOINED = 0.5  # of a source's images should have captions
TEMPLATE = Path(__file__).parent / "stats.html.j2"


@dataclass(frozen=True)
class ReasonLine:
    """A reason's line in the table of rows, and how many of each source's rows it has."""

    reason: str
    what: Reason
    rows: int
    by_source: list[int]


def write_stats(path: str, page: str | None = None) -> str:
    """Write the page about a finished dataset.

    Args:
        page: a local or remote file; None: `stats.html` beside the manifest.

    Returns:
        where the page is.

    Raises:
        DataError: no finished dataset, or one with missing or damaged parts.
        StorageError: a file that cannot be read, or the page that cannot be written.
    """
    path = user_paths.usable_path(path, "dataset").rstrip("/")
    page = storage.join(path, PAGE) if page is None else user_paths.usable_path(page, "--page")
    dataset = open_dataset(path)
    missing = [key for key in ("counts", "sources", "config") if key not in dataset.manifest]
    if missing:
        raise DataError(
            f"{storage.join(path, MANIFEST)}: has no '{missing[0]}', so the data stage did not "
            "write it; give a dataset of `python -m pipelines.data`"
        )
    fs, inner = storage.filesystem(storage.join(path, MANIFEST))
    finished = fs.get_file_info(inner).mtime or datetime.now(UTC)
    storage.write_bytes(page, render(dataset, finished).encode())
    return page


def publish(path: str, manifest: dict[str, Any], tracker: Tracker) -> None:
    """Write the page of a dataset whose files are all there, and attach it to the MLflow run.

    A page that fails costs no dataset: it is said, and the stage goes on.
    """
    page = storage.join(path, PAGE)
    try:
        files = tuple(FileEntry(**entry) for entry in manifest["files"])
        rejects = tuple(RejectsEntry(**entry) for entry in manifest["rejects"])
        dataset = Dataset(path, manifest, files, rejects)
        html = render(dataset, datetime.now(UTC)).encode()
        storage.write_bytes(page, html)
        tracker.log_artifact(page)
    except Exception as error:  # hours of downloads must not hang on a page
        print(
            f"data: {page}: not written ({error}); python -m pipelines.data stats {path} writes "
            "it once that is mended",
            file=sys.stderr,
            flush=True,
        )


def render(dataset: Dataset, finished: datetime) -> str:
    """The page, which needs nothing beside it and loads nothing.

    Raises:
        StorageError: a file of the dataset that cannot be read.
    """
    manifest = dataset.manifest
    names = [source["name"] for source in manifest["config"]["sources"]]
    sources = {name: manifest["sources"][name] for name in names}
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"count": _count, "share": _share, "bytes": bytes_text}
    environment.tests["web_address"] = _is_web_address
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=dataset.path.rsplit("/", 1)[-1],
        counts=manifest["counts"],
        sources=sources,
        lines=_reason_lines(manifest["counts"]["rejected"], list(sources.values())),
        bytes=sum(entry.bytes for entry in dataset.files),
        kept=sample_kept(dataset, manifest["config"]["row_group_rows"]),
        rejected=read_rejects(dataset),
        pairs=pair_pictures(dataset.path),
        texts=_texts(sources),
        work=_work(sources),
        warnings=_warnings(sources),
        facts=_facts(dataset, finished),
    )


def _texts(sources: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is known of each source's texts, in words; sources of earlier versions say less."""
    return {
        name: {
            part: _listed(said["texts"].get(part, {}))
            for part in ("captions", "notes", "scripts", "left_out")
        }
        | {
            "lengths": _lengths(said["texts"].get("lengths", {})),
            "joined": _joined(said["texts"].get("captions_from")),
            "sample": said["texts"].get("sample"),
        }
        for name, said in sources.items()
        if said.get("texts")
    }


def _work(sources: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Duration, pace and bytes of each source of which they are known."""
    return {
        name: [
            _duration(work["elapsed_s"]),
            _duration(work["task_s"]),
            f"{work['rows'] / max(work['elapsed_s'], 0.1):,.1f}",
            bytes_text(work["fetched_bytes"]),
        ]
        for name, said in sources.items()
        if (work := said.get("work"))
    }


def _lengths(texts: dict[str, int]) -> str:
    """`half up to 64, 95% up to 256, the longest up to 1,024`."""
    total, found = sum(texts.values()), 0
    below: dict[float, int] = {}
    for most, count in texts.items():
        found += count
        for share in (0.5, 0.95, 1.0):
            if found >= share * total:
                below.setdefault(share, int(most))
    if not below:
        return ""
    return f"half up to {below[0.5]:,}, 95% up to {below[0.95]:,}, all up to {below[1.0]:,}"


def _joined(counts: dict[str, Any] | None) -> str:
    if counts is None:
        return ""
    rejected = sum(counts["rejected"].values())
    why = f" ({_listed(counts['rejected'])})" if rejected else ""
    return (
        f"{counts['rows']:,} rows = joined {counts['joined']:,} + without an image "
        f"{counts['without_image']:,} + rejected {rejected:,}{why}"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _listed(rows: dict[str, int | None]) -> str:
    """`title (1,000), width`: names with their rows, where they are counted."""
    shown = [
        name if count is None else f"{name} ({count:,})"
        for name, count in list(rows.items())[:SHOWN]
    ]
    return ", ".join(shown) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")


def _warnings(sources: dict[str, dict[str, Any]]) -> list[str]:
    """What should not be overlooked: a source that gave nothing, or lost much as broken rows."""
    found = []
    for name, said in sources.items():
        broken = sum(said["rejected"].get(reason, 0) for reason in ("bad_row", "bad_text"))
        if said["kept"] == 0:
            found.append(f"{name}: kept none of its {said['input_rows']:,} rows")
        elif broken > BROKEN_SHARE * said["input_rows"]:
            share = _share(broken, said["input_rows"])
            found.append(f"{name}: {share} of its rows are broken (bad_row, bad_text)")
        joined = said.get("texts", {}).get("captions_from")
        if joined and joined["images_joined"] < LEAST_JOINED * joined["images"]:
            share = _share(joined["images_joined"], joined["images"])
            found.append(f"{name}: {share} of its images have a row in captions_from")
    return found


def _reason_lines(rejected: dict[str, int], sources: Sequence[dict[str, Any]]) -> list[ReasonLine]:
    """Every reason that a row was rejected for, in the order in which a row meets them."""
    known = [(reason, what) for reason, what in REASONS.items() if reason in rejected]
    return [
        ReasonLine(
            reason,
            what,
            rejected[reason],
            [source["rejected"].get(reason, 0) for source in sources],
        )
        for reason, what in known
    ]


def _facts(dataset: Dataset, finished: datetime) -> dict[str, str]:
    manifest = dataset.manifest
    files: Sequence[FileEntry] = (*dataset.files, *dataset.rejects)
    generation = manifest["generation"]
    return {
        "Folder": dataset.path,
        "Finished": f"{finished.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "Created by": manifest["created_by"],
        "Retries": str(generation) if generation else "none",
        "Parts": f"{len(dataset.files):,} files, {bytes_text(sum(f.bytes for f in dataset.files))}",
        "Files in all": f"{len(files):,} files with rejects, "
        f"{bytes_text(sum(f.bytes for f in files))}",
        "Fingerprint": dataset.fingerprint,
        "Configuration": f"{manifest['config_sha256']} (SHA-256; data.yaml beside the manifest)",
        "Input lists": manifest["input_fingerprint"],
        "MLflow run": manifest["mlflow_run_id"],
    }


def _count(value: int) -> str:
    return f"{value:,}"


def _share(part: float, whole: float) -> str:
    """Per cent, with the digits that small shares need: `97.1%`, `0.04%`, `<0.01%`."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.01:
        return "<0.01%"
    return f"{percent:.2f}%" if 0 < percent < 1 else f"{percent:.1f}%"


def _is_web_address(url: str) -> bool:
    """Whether a list's URL may become a link: a list may hold `javascript:` and worse."""
    return re.match(r"(?i:https?)://[^/?#\s]", url) is not None
