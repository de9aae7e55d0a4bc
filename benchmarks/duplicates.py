"""What finding duplicates costs: rows/s of exact passes, seconds of near passes, peak memory.

Perceptual hashes are uniform random ones plus one in fifty that is near another; real hashes are
more alike, for which `choose_bands` allows. Large distances run a few bands and are multiplied.

    python benchmarks/duplicates.py --rows 30000000
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from pipelines.data.dedup.pairs import choose_bands, exact_duplicates, near_pairs

TIMED_BANDS = 3


def make_hashes(rows: int, seed: int) -> np.ndarray:
    """Distinct random hashes (n,) uint64, every fiftieth a copy of another with two bits turned."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, rows, dtype=np.uint64)
    near = np.arange(0, rows, 50)
    one, other = np.uint64(1) << rng.integers(0, 64, (2, len(near)), dtype=np.uint64)
    hashes[near] = hashes[near - 1] ^ one ^ other
    return np.unique(hashes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--distances", type=int, nargs="+", default=[2, 4, 8])
    args = parser.parse_args()
    hashes = make_hashes(args.rows, 0)
    rows = np.arange(len(hashes))
    print(f"{len(hashes):,} rows, one core\n")
    print("| pass | bands | seconds | pairs found |\n|---|---|---|---|")
    rng = np.random.default_rng(1)
    digests = rng.integers(0, 2**63, (len(rows), 2)).astype(np.uint64)
    digests[::50] = digests[1 : len(rows) : 50][: len(digests[::50])]
    priority = rng.integers(0, 1000, len(rows))
    started = time.perf_counter()
    dropped, _ = exact_duplicates(digests, priority, rows)
    print(f"| equal bytes | | {time.perf_counter() - started:.1f} | {len(dropped):,} |")
    for distance in args.distances:
        bands = choose_bands(len(rows), distance)
        timed = min(len(bands), TIMED_BANDS)
        started = time.perf_counter()
        found = sum(
            len(near_pairs(hashes, rows, distance, bands, band)[0]) for band in range(timed)
        )
        seconds = (time.perf_counter() - started) * len(bands) / timed
        some = "" if timed == len(bands) else f" in {timed} bands"
        print(f"| at most {distance} bits | {len(bands)} | {seconds:,.0f} | {found:,}{some} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nPeak memory {peak:.1f} GiB, all rows in one slice.")


if __name__ == "__main__":
    main()
