"""Fitting the superpixel network: the loss, the command line, and that it learns and repeats."""

import subprocess
import sys

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from caft.config import SuperpixelConfig
from caft.superpixels.__main__ import main
from caft.superpixels.fit import load_images, reconstruction_loss
from caft.superpixels.network import SFCN, load_sfcn_weights, read_sfcn_weights
from pipelines.demo.scenes import SceneConfig, render_scene

QUICK = ["--steps", "2", "--crops", "2", "--crop-px", "32"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for n in range(3):
        cv2.imwrite(str(folder / f"{n}.png"), render_scene(n, SceneConfig()).image)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_true_superpixels_reconstruct_better_than_their_neighbours():
    """A picture with one colour per cell: own cells leave no error of colour."""
    lab = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    lab = lab.repeat_interleave(16, 2).repeat_interleave(16, 3)
    own = torch.zeros(1, 9, 48, 64)
    own[:, 4] = 1
    mixed = torch.full((1, 9, 48, 64), 1 / 9)
    assert reconstruction_loss(own, lab, 0.0) < 1e-3
    assert reconstruction_loss(mixed, lab, 0.0) > 0.1
    # what is left is the mean distance of a pixel from the middle of its cell, 6.1 px
    position = reconstruction_loss(own, lab, 1.0) - reconstruction_loss(own, lab, 0.0)
    assert position * 16 == pytest.approx(6.1, abs=0.1)


def test_a_pixel_s_colour_decides_where_it_belongs():
    """The gradient moves a pixel to the neighbour of its colour."""
    lab = torch.zeros(1, 3, 32, 32)
    lab[..., 14:] = 1.0  # the true edge lies two pixels left of the cells' border
    probabilities = torch.full((1, 9, 32, 32), 0.01)
    probabilities[:, 4] = 0.92
    probabilities.requires_grad_()
    reconstruction_loss(probabilities, lab, 0.003).backward()
    gradient = probabilities.grad[0, :, 5, 15]  # just left of the border, in the right colour
    assert gradient[5] < gradient[4]  # to the right rather than its own


def test_the_command_line_writes_weights_that_load_and_repeats_them(photographs, tmp_path, capsys):
    files = [tmp_path / f"{n}.safetensors" for n in range(3)]
    for file, seed in zip(files, "001", strict=True):
        assert main(["fit", str(photographs), "--output", str(file), "--seed", seed, *QUICK]) == 0
    assert "fit: 3 images, 2 steps" in capsys.readouterr().out
    assert files[0].read_bytes() != files[2].read_bytes()
    first, again = (read_sfcn_weights(SuperpixelConfig(weights=str(f))) for f in files[:2])
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
    load_sfcn_weights(SFCN(frozen=True), first, "test")


def test_a_dataset_folder_is_read_without_its_rejects(photographs, tmp_path):
    data = [(photographs / f"{n}.png").read_bytes() for n in range(3)]
    for n, rows in enumerate((data[:2], data[2:])):
        pq.write_table(pa.table({"image": rows}), tmp_path / f"part-{n:05d}.parquet")
    (tmp_path / "rejects").mkdir()
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "rejects" / "part-00000.parquet")
    assert len(load_images(tmp_path)) == 3
    for ours, theirs in zip(load_images(tmp_path), load_images(photographs), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(load_images(tmp_path, limit=2)) == 2
    assert len(load_images(photographs, limit=2)) == 2


def test_wrong_input_is_one_line(photographs, tmp_path, capsys):
    def said(*arguments):
        assert main(["fit", *map(str, arguments), *QUICK]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no such folder" in said(tmp_path / "nowhere")
    assert "no image in it" in said(empty)
    (empty / "a.jpg").write_bytes(b"no image")
    assert "a.jpg: image of 8 bytes cannot be decoded" in said(empty)
    (empty / "part-00000.parquet").write_bytes(b"no parquet")
    assert "part-00000.parquet: corrupt Parquet" in said(empty)
    pq.write_table(pa.table({"key": ["a"]}), empty / "part-00000.parquet")
    assert "no column 'image'" in said(empty)
    file = tmp_path / "file"
    file.write_text("")
    assert "cannot be written" in said(photographs, "--output", file / "below.safetensors")
    assert main(["fit", str(photographs), "--crop-px", "30"]) == 2
    assert "crop_px 30: must be a multiple" in capsys.readouterr().err


def test_the_module_runs_without_warnings():
    command = [sys.executable, "-W", "error", "-m", "caft.superpixels", "fit", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("DataError: nowhere: no such folder")
