"""How many pixels keep their superpixel when SFCN runs as on a GPU: norms folded, half precision.

python benchmarks/superpixel_precision.py FOLDER [--images 24]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from caft.config import load_model_config
from caft.preprocessing import eval_image
from caft.superpixels.folded import folded
from caft.superpixels.labels import network_labels
from caft.superpixels.network import open_sfcn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of photographs")
    parser.add_argument("--images", type=int, default=24, help="most of them")
    args = parser.parse_args()
    files = sorted(args.folder.rglob("*.jpg"))[: args.images]
    image = load_model_config("caft_b").image
    images = torch.stack([eval_image(f, image.image_size_px, image.preprocess) for f in files])
    network = open_sfcn(image.superpixels)
    statistics = image.superpixels.unnormalise_with
    with torch.no_grad():
        due = network_labels(images, network, statistics)
        print(f"{len(files)} photographs; pixels with the label of float32, in per cent")
        print("| precision | all | worst photograph |\n|---|---|---|")
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            equal = network_labels(images, folded(network, dtype), statistics) == due
            shares = 100 * equal.flatten(1).double().mean(dim=1)
            name = str(dtype).removeprefix("torch.")
            print(f"| {name} | {shares.mean():.2f} | {shares.min():.2f} |")


if __name__ == "__main__":
    main()
