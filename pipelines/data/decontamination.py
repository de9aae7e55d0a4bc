"""Finds training images that nearly are evaluation images, seen plainly or in a mirror.
Evaluation sets are hashed once before the chunks; every chunk then asks for its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from caft.errors import DataError

SCHEMA = pa.schema([("name", pa.string()), ("phash", pa.uint64())])


@dataclass(frozen=True, eq=False)
class EvaluationHashes:
    """Perceptual hashes of evaluation images; an image has one plain and one mirrored."""

    names: pa.StringArray  # (N,)
    hashes: np.ndarray  # (N,) uint64, rising

    @classmethod
    def from_hashes(cls, names: Sequence[str], hashes: Sequence[int]) -> EvaluationHashes:
        """Of one name per hash of 64 bits; rejects show the name, such as `coco/000000000139`."""
        columns = [pa.array(names, pa.string()), pa.array(hashes, pa.uint64())]
        return cls.from_table(pa.Table.from_arrays(columns, schema=SCHEMA))

    @classmethod
    def from_table(cls, table: pa.Table) -> EvaluationHashes:
        """Of one `to_table`, or several joined by `pa.concat_tables` in any order."""
        table = table.group_by(["phash", "name"]).aggregate([])
        table = table.sort_by([("phash", "ascending"), ("name", "ascending")]).combine_chunks()
        names = pa.concat_arrays(table["name"].chunks or [pa.array([], pa.string())])
        return cls(names, table["phash"].to_numpy())

    def to_table(self) -> pa.Table:
        """Columns `name` and `phash`, as Parquet stores them."""
        return pa.Table.from_arrays([self.names, pa.array(self.hashes)], schema=SCHEMA)

    def nearest(self, phash: int) -> tuple[str, int] | None:
        """Name of the nearest image and the bits that differ; None if there is no image at all.

        Compares with every hash: 13 µs for 20,000 of them, 0.3 ms for 200,000.
        """
        if len(self.hashes) == 0:
            return None
        differing = np.bitwise_count(self.hashes ^ np.uint64(phash))
        place = int(differing.argmin())
        return self.names[place].as_py(), int(differing[place])


def evaluation_hashes(
    images: Iterable[tuple[str, bytes]], hash_image: Callable[[bytes], tuple[int, int]]
) -> EvaluationHashes:
    """Hash evaluation images, or a share of them.

    Args:
        images: name and encoded bytes of each.
        hash_image: gives the perceptual hashes of an encoded image and of its mirror image.

    Raises:
        DataError: an image that cannot be decoded, by its name: unseen, it could not be kept out.
    """
    names: list[str] = []
    hashes: list[int] = []
    for name, data in images:
        try:
            hashes += hash_image(data)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        names += [name, name]
    return EvaluationHashes.from_hashes(names, hashes)


def contaminated(phash: int, evaluation: EvaluationHashes, distance: int) -> str | None:
    """Name of the nearest evaluation image and the differing bits, as a reject's detail says it;
    None if no image is within `distance`."""
    found = evaluation.nearest(phash)
    if found is None or found[1] > distance:
        return None
    return f"{found[0]} ({found[1]} bits differ)"
