"""What near duplicates are worth: pictures removed wrongly, and true copies that are found.

Of each kind, 100 different pictures and copies of the first of them: re-encoded, resized, and
cropped by 1 to 4% of a side. Printed for a distance: pictures that the hash alone would remove,
those that are removed with the second look, and of the copies that the hash finds the share that
the second look confirms. Before that: bytes a look takes, as it is and as Parquet stores it, and
the time it costs a picture and a pair.

    python benchmarks/near_duplicates.py --photographs FOLDER --distances 2 4
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import pipelines.demo
from benchmarks.generated_pictures import KINDS
from pipelines.data.config import ImageConfig
from pipelines.data.dedup.looks import as_looks, same_picture
from pipelines.data.images.look import LOOK_BYTES, make_look
from pipelines.data.images.prepare import prepare_image, upright_pixels

PICTURES = 100
CROPS = (0.01, 0.02, 0.03, 0.04)
COLUMNS = ["re-encoded", "resized", *(f"cropped {share:.0%}" for share in CROPS)]
QUALITIES = (30, 50, 75, 95)
SCALES = (0.5, 0.67, 1.33, 2)
ROUNDS = 5


def photographs(folder: Path | None = None) -> list[Image.Image]:
    """Those of a folder, or of the demo."""
    folder = folder or Path(pipelines.demo.__file__).with_name("photographs")
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]


def copies(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Copies of a picture, as (kind, encoded)."""
    width, height = picture.size
    for quality in QUALITIES:
        yield "re-encoded", encoded(picture, quality=quality)
    yield "re-encoded", encoded(picture, format="WEBP", quality=60)
    yield "re-encoded", encoded(picture, format="PNG")
    for scale in SCALES:
        size = (round(scale * width), round(scale * height))
        yield "resized", encoded(picture.resize(size, Image.Resampling.BICUBIC))
    yield "resized", encoded(picture.resize((width // 2, height // 2), Image.Resampling.BOX))
    for share in CROPS:
        x, y = round(share * width), round(share * height)
        for box in (
            (x, 0, width, height),
            (0, y, width, height),
            (0, 0, width - x, height),
            (0, 0, width, height - y),
            (x // 2, y // 2, width - x + x // 2, height - y + y // 2),
        ):
            yield f"cropped {share:.0%}", encoded(picture.crop(box))


def encoded(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **({"format": "JPEG", "quality": 80} | options))  # type: ignore[arg-type]
    return buffer.getvalue()


def seen(data: bytes) -> tuple[int, bytes]:
    """Hash and look, as the data stage makes them."""
    row = prepare_image(data, ImageConfig())
    return row["phash"], row["look"]


def removed(pictures: list[tuple[int, bytes]], distance: int) -> tuple[int, int]:
    """Of different pictures: how many a near hash alone removes, and with the second look."""
    hashes = np.array([phash for phash, _ in pictures], np.uint64)
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= distance
    later, earlier = np.nonzero(np.tril(near, -1))
    same = same_picture(as_looks([look for _, look in pictures]), later, earlier)
    return len(np.unique(later)), len(np.unique(later[same]))


def found(originals: list[Image.Image], distance: int) -> dict[str, list[bool]]:
    """Of true copies that the hash finds, by kind, whether the look confirms each."""
    by_kind: dict[str, list[bool]] = {}
    for picture in originals:
        original = seen(encoded(picture, quality=92))
        near = [
            (name, copy)
            for name, copy in ((name, seen(data)) for name, data in copies(picture))
            if (original[0] ^ copy[0]).bit_count() <= distance
        ]
        looks = as_looks([original[1], *(copy[1] for _, copy in near)])
        places = np.arange(len(near))
        for (name, _), same in zip(
            near, same_picture(looks, 0 * places, places + 1).tolist(), strict=True
        ):
            by_kind.setdefault(name, []).append(same)
    return by_kind


def different(kind: str, count: int, seed: int = 0) -> list[Image.Image]:
    """Pictures of a kind, no two of which have the same pixels."""
    rng = np.random.default_rng(seed)
    pictures: dict[bytes, Image.Image] = {}
    while len(pictures) < count:
        picture = KINDS[kind](rng)
        pictures.setdefault(picture.tobytes(), picture)
    return list(pictures.values())


def cost(pictures: list[Image.Image]) -> None:
    """Prints what looks of photographs take and cost."""
    files = [encoded(picture, quality=90) for picture in pictures]
    decoded = [upright_pixels(data, ImageConfig()) for data in files]
    looks = [make_look(*one) for one in decoded]
    sink = io.BytesIO()
    column = pa.array(looks, pa.binary())
    pq.write_table(pa.table({"look": column}), sink, compression="zstd", use_dictionary=False)
    print(f"{LOOK_BYTES} bytes a look, {sink.tell() / len(looks):.0f} in Parquet")
    make_ms = min(_ms(lambda: [make_look(*one) for one in decoded]) for _ in range(ROUNDS))
    whole_ms = min(
        _ms(lambda: [prepare_image(data, ImageConfig()) for data in files]) for _ in range(ROUNDS)
    )
    one, other = np.triu_indices(len(looks), 1)
    pair_ms = _ms(lambda: same_picture(as_looks(looks), one[:2000], other[:2000]))
    print(f"{make_ms / len(looks):.2f} ms a picture, of {whole_ms / len(looks):.2f} to prepare it")
    print(f"{pair_ms / len(one[:2000]):.2f} ms a pair of different pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--distances", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--photographs", type=Path, help="a folder of JPEG files; else the demo's")
    parser.add_argument("--copied", type=int, default=20, help="pictures of a kind with copies")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    real = photographs(args.photographs)
    cost(real)
    for distance in args.distances:
        print(f"\nDistance {distance}\n")
        print(f"| of {PICTURES} | hash alone | with the look | {' | '.join(COLUMNS)} |")
        print("|---|---|---|" + "---|" * len(COLUMNS), flush=True)
        for name in [*KINDS, "photographs"]:
            made = different(name, PICTURES, args.seed) if name in KINDS else real
            alone, confirmed = removed([seen(encoded(p, quality=92)) for p in made], distance)
            by_kind = found(made[: args.copied] if name in KINDS else made, distance)
            shares = [
                f"{sum(by_kind[kind])} of {len(by_kind[kind])}" if kind in by_kind else "none"
                for kind in COLUMNS
            ]
            print(f"| {name} | {alone} | {confirmed} | {' | '.join(shares)} |", flush=True)


def _ms(work: object) -> float:
    started = time.process_time()
    work()  # type: ignore[operator]
    return 1e3 * (time.process_time() - started)


if __name__ == "__main__":
    main()
