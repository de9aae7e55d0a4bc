"""Small sources for the tests of their readers."""

import io
import tarfile

import numpy as np
from PIL import Image

from pipelines.data.config import SourceConfig
from pipelines.data.sources import parse_rows, read_tables


def source(path, **changes) -> SourceConfig:
    return SourceConfig(name="list", path=str(path), **changes)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    path.write_bytes(data)
    return path


def read_rows(config, extra=()):
    """All rows of a list, as the stage parses them."""
    return [row for table in read_tables(config, extra) for row in parse_rows(table, config)]


def captions_of(row):
    return {entry["source"]: entry["texts"] for entry in row["texts"]}


def image_bytes(seed=0, side=8):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def tar_bytes(members):
    """A tar of (name, bytes) or TarInfo, in their order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return stream.getvalue()
