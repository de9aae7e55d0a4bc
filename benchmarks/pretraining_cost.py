"""What pretraining CAFT-B takes by the recipes in configs/train/: samples, FLOP, hours, dollars.

Arithmetic, not a measurement: FLOP as `python -m caft.model describe` counts them, and hours at a
stated rate and use of it. `train/mfu` of a run says what your devices reach.

    python benchmarks/pretraining_cost.py [--peak-tflops 989 --mfu 0.3 --dollars-per-hour 2.5]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from caft.config import load_config, load_model_config
from caft.cost import Workload, flops
from pipelines.train.config import TrainConfig

RECIPES = Path(__file__).parents[1] / "configs" / "train"
PAIRS = {"3m": 2_823_423, "12m": 10_012_845, "15m": 14_066_050, "30m": 26_902_318}
TERA, EXA, HOUR_S = 1e12, 1e18, 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak-tflops", type=float, default=989, help="of a device, in bfloat16")
    parser.add_argument("--mfu", type=float, default=0.3, help="share of it that training reaches")
    parser.add_argument("--dollars-per-hour", type=float, default=2.5, help="of a device")
    args = parser.parse_args()
    print(
        f"At {args.mfu:.0%} of {args.peak_tflops:,.0f} TFLOP/s and ${args.dollars_per_hour:g} an "
        "hour of a device, and if every URL of the lists still answered:\n\n"
        "| recipe | pairs | samples | steps | EFLOP | device-hours | dollars |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, pairs in PAIRS.items():
        config = load_config(TrainConfig, RECIPES / f"caft_b_{name}.yaml")
        cost = flops(load_model_config("caft_b"), Workload(global_batch=config.global_batch))
        steps = round(config.epochs * (pairs // config.global_batch))  # of an epoch, whole ones
        samples = steps * config.global_batch
        flop = samples * cost.training
        hours = flop / (args.mfu * args.peak_tflops * TERA) / HOUR_S
        print(
            f"| `caft_b_{name}` | {pairs:,} | {samples / 1e6:,.0f} M "
            f"| {steps:,} | {flop / EXA:,.1f} | {hours:,.0f} "
            f"| {hours * args.dollars_per_hour:,.0f} |"
        )


if __name__ == "__main__":
    main()
