"""What a page about a dataset shows of its kept rows: histograms, and a gallery of thumbnails.
Reads row groups from all over the parts, so that a dataset of any size takes seconds."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from caft.captions import JOINER
from caft.errors import StorageError
from pipelines import storage
from pipelines.data.config import ImageConfig
from pipelines.data.dataset import Dataset, FileEntry
from pipelines.data.dedup.samples import SIDES, read_samples
from pipelines.data.filters import longest_caption
from pipelines.data.images.decoder import Decoder
from pipelines.data.images.prepare import ImageRefused
from pipelines.data.write import group_rows

SAMPLED_ROWS = 8_192
GALLERY_IMAGES = 24
Item = TypeVar("Item")
THUMBNAIL = ImageConfig(max_side_px=200, jpeg_quality=80)
MAX_THUMBNAIL_BYTES = 40_000  # a small image may be stored as it came, in any number of bytes
BATCH_ROWS = 128
BINS = 24
WIDE_RANGE = 12  # largest / smallest from which on bins widen with the value
COLUMNS = [
    "url",
    "image",
    "width",
    "height",
    "original_width",
    "original_height",
    "captions",
    "split",
]


@dataclass(frozen=True)
class Bar:
    """One bin: what it holds, and its height among the highest, 0 .. 1."""

    label: str
    count: int
    height: float


@dataclass(frozen=True)
class Histogram:
    """The distribution of one measure over n values."""

    title: str
    n: int
    bars: list[Bar]
    least: str
    most: str
    median: str
    low: str  # 5th percentile
    high: str  # 95th percentile


@dataclass(frozen=True)
class KeptRows:
    """What was seen of `rows` rows, out of all that the dataset has."""

    rows: int
    histograms: list[Histogram]
    gallery: list[dict[str, Any]]


@dataclass(frozen=True)
class _Group:
    entry: FileEntry
    number: int
    rows: int


def sample_kept(dataset: Dataset, row_group_rows: int, most_rows: int = SAMPLED_ROWS) -> KeptRows:
    """Look at row groups that are spread evenly over the dataset, all of them if it is small.

    Args:
        row_group_rows: with which the dataset was written.
        most_rows: about so many are looked at, one row group at the least.

    Raises:
        StorageError: a part that cannot be read.
    """
    most = max(1, most_rows // row_group_rows)
    files = _spread(dataset.files, most)
    groups = _spread([group for entry in files for group in _groups(dataset, entry)], most)
    total = sum(group.rows for group in groups)
    shown = set(np.linspace(0, total - 1, min(GALLERY_IMAGES, total)).astype(int).tolist())
    measures = _Measures()
    gallery: list[dict[str, Any]] = []
    seen = 0
    with Decoder(THUMBNAIL) as decoder:
        for group in groups:
            for batch in _read(dataset, group):
                measures.add(batch)
                places = [n for n in range(len(batch)) if seen + n in shown]
                for row in batch.take(pa.array(places, pa.int64())).to_pylist():
                    gallery.append(_picture(row, group.entry.source, decoder))
                seen += len(batch)
    return KeptRows(seen, measures.histograms(), gallery)


def pair_pictures(path: str) -> list[dict[str, Any]]:
    """Near duplicates of a dataset that were stored as samples: `src` and `url` of both sides."""
    pairs = read_samples(path)
    if not pairs:
        return []
    with Decoder(THUMBNAIL) as decoder:
        return [
            {"bits": pair["bits"]} | {side: _side(pair, side, decoder) for side in SIDES}
            for pair in pairs
        ]


def _side(pair: dict[str, Any], side: str, decoder: Decoder) -> dict[str, Any]:
    return {"src": _thumbnail(pair[f"{side}_image"], decoder), "url": pair[f"{side}_url"]}


def _groups(dataset: Dataset, entry: FileEntry) -> list[_Group]:
    rows = group_rows(storage.join(dataset.path, entry.name))
    return [_Group(entry, number, count) for number, count in enumerate(rows)]


def _spread(items: Sequence[Item], count: int) -> Sequence[Item]:
    if len(items) <= count:
        return items
    places = np.linspace(0, len(items) - 1, count).round().astype(int)
    return [items[place] for place in places]


def _read(dataset: Dataset, group: _Group) -> Iterator[pa.RecordBatch]:
    path = storage.join(dataset.path, group.entry.name)
    fs, inner = storage.filesystem(path)
    try:
        with fs.open_input_file(inner) as file:
            yield from pq.ParquetFile(file).iter_batches(BATCH_ROWS, [group.number], COLUMNS)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None


def _picture(row: dict[str, Any], source: str, decoder: Decoder) -> dict[str, Any]:
    """What the gallery shows of a row; `src` is None where the image makes no thumbnail."""
    return {
        "src": _thumbnail(row["image"], decoder),
        "url": row["url"],
        "source": source,
        "split": row["split"],
        "size": f"{row['width']} × {row['height']}",
        "bytes": len(row["image"]),
        "first": longest_caption(row["captions"])[0],
        "captions": row["captions"],
    }


def _thumbnail(image: bytes, decoder: Decoder) -> str | None:
    try:
        thumbnail = decoder.prepare(image)["image"]
    except ImageRefused:
        return None
    return _data_url(thumbnail) if 0 < len(thumbnail) <= MAX_THUMBNAIL_BYTES else None


def _data_url(image: bytes) -> str:
    kinds = {b"\x89PNG": "png", b"RIFF": "webp"}
    kind = kinds.get(image[:4], "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


class _Measures:
    """Values of all rows seen, by measure."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, batch: pa.RecordBatch) -> None:
        sides = {
            name: batch[name].to_numpy().astype(np.float64)
            for name in ("width", "height", "original_width", "original_height")
        }
        original = np.maximum(sides["original_width"], sides["original_height"])
        self._put("Longest side as stored, px", np.maximum(sides["width"], sides["height"]))
        self._put("Longest side at the source, px", original)
        self._put("Width ÷ height", sides["width"] / sides["height"])
        self._put("Bytes of a stored image", pc.binary_length(batch["image"]).to_numpy())
        per_caption: list[int] = []
        per_row: list[int] = []
        characters: defaultdict[str, list[int]] = defaultdict(list)
        for captions in batch["captions"].to_pylist():
            counts = [len(caption["sentences"]) for caption in captions]
            per_caption += counts
            per_row.append(sum(counts))
            for caption in captions:
                characters[caption["kind"]].append(len(JOINER.join(caption["sentences"])))
        self._put("Sentences of a row, all captions", per_row)
        self._put("Sentences of a caption", per_caption)
        for kind in ("raw", "short", "long"):
            self._put(f"Characters of a {kind} caption", characters[kind])

    def _put(self, title: str, values: Any) -> None:
        self._values[title].append(np.asarray(values, np.float64))

    def histograms(self) -> list[Histogram]:
        joined = {title: np.concatenate(values) for title, values in self._values.items()}
        return [_histogram(title, values) for title, values in joined.items() if len(values)]


def _histogram(title: str, values: np.ndarray) -> Histogram:
    text = _text_of(title)
    edges = _edges(values)
    counts, _ = np.histogram(values, edges)
    whole = bool((values == values.round()).all())
    bars = [
        Bar(_range(low, high, whole, text), int(count), float(count / counts.max()))
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    return Histogram(
        title,
        len(values),
        bars,
        text(values.min()),
        text(values.max()),
        text(median),
        text(low),
        text(high),
    )


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of bins: one for each integer if they are few, else even ones, of the value or, over
    a wide range, of its logarithm."""
    low, high = float(values.min()), float(values.max())
    whole = bool((values == values.round()).all())
    if whole and high - low < BINS:
        return np.arange(low, high + 2) - 0.5
    if low == high:
        return np.array([low * 0.98, high * 1.02])
    if low > 0 and high / low > WIDE_RANGE:
        edges = np.geomspace(low, high, BINS + 1)
        edges = np.unique(np.ceil(edges)) if whole else edges
    else:
        edges = np.linspace(low, high, BINS + 1)
        edges = np.unique(edges.round()) if whole else edges
    edges[0], edges[-1] = low, high  # rounding must leave nothing out
    return edges


def _range(low: float, high: float, whole: bool, text: Callable[[float], str]) -> str:
    if whole and high - low <= 1:
        return text(np.ceil(low))
    return f"{text(low)} to {text(high)}"


def _text_of(title: str) -> Callable[[float], str]:
    if title.startswith("Bytes"):
        return bytes_text
    if "÷" in title:
        return lambda value: f"{value:.2f}"
    return lambda value: f"{value:,.0f}"


def bytes_text(value: float) -> str:
    """`1.2 TB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB" if value < 999.5 else f"{value:,.0f} TB"
