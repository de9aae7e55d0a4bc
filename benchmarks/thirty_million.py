"""Hours, line and dollars of thirty million pairs, from what the other benchmarks measured.

Arithmetic alone: every number that goes in is an option, so that yours can take its place.

    python benchmarks/thirty_million.py --rows-per-s-per-core 200 --kept 0.8
"""

from __future__ import annotations

import argparse

KEPT_ROWS = 30_000_000
CORES = (16, 64, 256)
CHUNKS_PER_CORE = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows-per-s-per-core", type=float, default=152, help="benchmarks/data.py")
    parser.add_argument("--kb-per-row", type=float, default=160, help="downloaded; the same")
    parser.add_argument("--kept", type=float, default=0.75, help="share of rows; assumed")
    parser.add_argument("--rows-per-s-per-chunk", type=float, default=64, help="assumed: 1 s a row")
    parser.add_argument("--dollars-per-core-hour", type=float, default=0.05, help="assumed")
    args = parser.parse_args()
    rows = KEPT_ROWS / args.kept
    cpu_hours = rows / args.rows_per_s_per_core / 3600
    print(f"{rows / 1e6:.0f} million rows, {cpu_hours:,.0f} CPU-hours\n")
    print("| cores | bound by CPU, hours | bound by waiting, hours | line, Gbit/s | dollars |")
    print("|---|---|---|---|---|")
    for cores in CORES:
        chunks = CHUNKS_PER_CORE * cores
        by_cpu = cpu_hours / cores
        by_waiting = rows / (chunks * args.rows_per_s_per_chunk) / 3600
        hours = max(by_cpu, by_waiting)
        line = rows / (hours * 3600) * args.kb_per_row * 8 / 1e6
        dollars = hours * cores * args.dollars_per_core_hour
        print(f"| {cores} | {by_cpu:.1f} | {by_waiting:.1f} | {line:.1f} | {dollars:.1f} |")


if __name__ == "__main__":
    main()
