"""Command line of the superpixel network: fits it to a dataset or a folder of photographs.
Run as `python -m caft.superpixels fit DATASET [--output FILE] [--steps N] ...`."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path

from caft.errors import CAFTError
from caft.extras import command_needs

with command_needs("pipelines", "caft.superpixels"):
    from caft.superpixels.fit import FitConfig, fit, load_images, save_network

REPORT_EVERY_STEPS = 50


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; a CAFTError is one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    try:
        config = FitConfig(**{field.name: getattr(args, field.name) for field in fields(FitConfig)})
        _fit(args.dataset, Path(args.output), config)
    except CAFTError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m caft.superpixels", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("fit", help="fit the network to images, without labels")
    command.add_argument("dataset", help="folder of the data stage, or of image files")
    command.add_argument("--output", default="sfcn.safetensors", help="weights file to write")
    default = FitConfig()
    for name, text in (
        ("steps", "of Adam, cosine decay"),
        ("crops", "per step"),
        ("crop_px", "side of a crop, a multiple of 16"),
        ("lr", "learning rate at the start"),
        ("position_weight", "larger: smoother and more regular; smaller: closer to colour"),
        ("images", "read at most; they are held in memory"),
        ("max_side_px", "larger images are shrunk to it first"),
        ("seed", "of crops and first weights"),
    ):
        value = getattr(default, name)
        command.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{text} ({value})"
        )
    command.add_argument("--bfloat16", action="store_true", help="faster where the CPU has it")
    return parser


def _fit(dataset: str, output: Path, config: FitConfig) -> None:
    images = load_images(dataset, config.images)
    print(f"fit: {len(images):,} images, {config.steps:,} steps", flush=True)
    started, recent = time.monotonic(), []

    def report(step: int, loss: float) -> None:
        recent.append(loss)
        if step % REPORT_EVERY_STEPS == 0 or step == config.steps:
            left = (time.monotonic() - started) * (config.steps - step) / step
            mean = sum(recent) / len(recent)
            print(f"fit: step {step:,} of {config.steps:,}, loss {mean:.4f}, {left:.0f} s left")
            sys.stdout.flush()
            recent.clear()

    network = fit(images, config, report)
    save_network(network, output, {"fit": repr(config), "images": str(len(images))})
    print(f"fit: wrote {output}; use it with superpixels.weights={output}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
