"""SFCN: a small U-Net that says of each pixel to which of the nine nearest cells it belongs.
Fitted without labels by caft.superpixels.fit; frozen inside CAFT, where it cuts the images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from caft.config import SFCN_CELL_PX, SuperpixelConfig
from caft.errors import CheckpointError, ConfigError
from caft.torch_files import read_released

ASSET_DIR = Path(__file__).resolve().parents[1] / "assets"
WIDTHS = (16, 32, 64, 128, 256)
NEIGHBOURS = 9  # row by row, the own cell in the middle
RGB_MEAN = (0.411, 0.432, 0.45)  # of RGB in 0 .. 1; what the published weights expect
SLOPE = 0.1
TORCH_SUFFIXES = (".tar", ".pt", ".pth", ".bin")  # others are safetensors
WRAPPER_PREFIX = "module."  # of a network saved inside its data-parallel wrapper
# Heads at lower resolutions, which only the published training used.
AUXILIARY_HEADS = ("pred_mask1.", "pred_mask2.", "pred_mask3.")


class SFCN(nn.Module):
    """Superpixels with a fully convolutional network (Yang et al., CVPR 2020).

    Submodules bear the names of the published weights. A frozen network has buffers in the place
    of parameters, so that no optimiser finds them, and normalises by stored statistics alone.

    Attributes:
        compiled: on a GPU, a graph makes its labels.
    """

    compiled = False

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        norm = StoredNorm if frozen else nn.BatchNorm2d
        width_in = 3
        for level, width in enumerate(WIDTHS):
            stride = 1 if level == 0 else 2
            self.add_module(f"conv{level}a", _conv(width_in, width, stride, norm))
            self.add_module(f"conv{level}b", _conv(width, width, 1, norm))
            width_in = width
        for level in reversed(range(len(WIDTHS) - 1)):
            width = WIDTHS[level]
            self.add_module(f"deconv{level}", _deconv(WIDTHS[level + 1], width))
            self.add_module(f"conv{level}_1", _conv(2 * width, width, 1, norm))
        self.pred_mask0 = nn.Conv2d(WIDTHS[0], NEIGHBOURS, 3, padding=1)
        self.apply(_initialise)
        if frozen:
            _parameters_to_buffers(self)

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities (B, 9, H, W) of images (B, 3, H, W), RGB in 0 .. 1 less `RGB_MEAN`.

        In float32 at least: those of half precision would tie. H and W are multiples of 16. The
        nine cells are the pixel's own and its neighbours: top left, top, top right, left, own,
        right, bottom left, bottom, bottom right.
        """
        scores = self.scores(images)
        return scores.softmax(dim=1, dtype=torch.promote_types(scores.dtype, torch.float32))

    def scores(self, images: Tensor) -> Tensor:
        """Logits of the probabilities, in the network's own precision."""
        levels = range(len(WIDTHS))
        skips = []
        features = images
        for level in levels:  # (B, WIDTHS[level], H / 2^level, W / 2^level)
            features = self.get_submodule(f"conv{level}a")(features)
            features = self.get_submodule(f"conv{level}b")(features)
            skips.append(features)
        for level in reversed(levels[:-1]):
            raised = self.get_submodule(f"deconv{level}")(features)
            features = torch.cat([skips[level], raised], dim=1)
            features = self.get_submodule(f"conv{level}_1")(features)
        return self.pred_mask0(features)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(itertools.chain(self.parameters(), self.buffers())).dtype


class StoredNorm(nn.BatchNorm2d):
    """Batch normalisation that neither uses nor updates a batch's statistics, in any mode."""

    def forward(self, features: Tensor) -> Tensor:
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def decode_labels(probabilities: Tensor) -> Tensor:
    """Label map (B, H, W) int64 of probabilities (B, 9, H, W), or of their logits: each pixel's
    likeliest cell.

    Cells are numbered row by row. Beyond the border lie the border's own cells again.
    """
    height, width = probabilities.shape[-2:]
    rows, columns = height // SFCN_CELL_PX, width // SFCN_CELL_PX
    cells = cell_neighbours(rows, columns, probabilities.device)  # (9, rows, columns)
    cells = cells.repeat_interleave(SFCN_CELL_PX, 1).repeat_interleave(SFCN_CELL_PX, 2)
    choice = probabilities.argmax(dim=1)  # (B, H, W)
    return cells.expand(len(choice), -1, -1, -1).gather(1, choice[:, None])[:, 0]


def cell_neighbours(rows: int, columns: int, device: torch.device) -> Tensor:
    """The nine cells around each cell (9, rows, columns), in the order of the network's output."""
    step = torch.arange(-1, 2, device=device)
    row = (torch.arange(rows, device=device) + step[:, None]).clamp(0, rows - 1)  # (3, rows)
    column = (torch.arange(columns, device=device) + step[:, None]).clamp(0, columns - 1)
    cells = row[:, None, :, None] * columns + column[None, :, None, :]  # (3, 3, rows, columns)
    return cells.view(NEIGHBOURS, rows, columns)


def read_sfcn_weights(config: SuperpixelConfig) -> dict[str, Tensor]:
    """The weights that a configuration names for a new model.

    They are a .safetensors file, or one as PyTorch saves it, such as the `.tar` of the published
    SpixelNet, whose weights are read without running what else a pickle may hold.

    Raises:
        ConfigError: no such file, and none of that name is shipped; or it cannot be read so.
    """
    shipped = ASSET_DIR / f"{config.weights}.safetensors"
    path = shipped if shipped.exists() else Path(config.weights)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in ASSET_DIR.glob("*.safetensors")))
        raise ConfigError(
            f"superpixels.weights: '{config.weights}' is no file and not shipped (known: {known}); "
            "python -m caft.superpixels fit makes one"
        )
    try:
        if path.suffix in TORCH_SUFFIXES:
            return _read_torch_file(path)
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"superpixels.weights: {path}: cannot be read as safetensors: {error}"
        ) from None


def _read_torch_file(path: Path) -> dict[str, Tensor]:
    try:
        weights = read_released(path)
    except CheckpointError as error:
        raise ConfigError(f"superpixels.weights: {error}") from None
    return {key.removeprefix(WRAPPER_PREFIX): value for key, value in weights.items()}


def open_sfcn(config: SuperpixelConfig) -> SFCN:
    """The frozen network that a configuration names, with its weights.

    Raises:
        ConfigError: as `read_sfcn_weights`.
        CheckpointError: as `load_sfcn_weights`.
    """
    network = SFCN(frozen=True)
    source = f"superpixels.weights: {config.weights}"
    load_sfcn_weights(network, read_sfcn_weights(config), source)
    return network


def load_sfcn_weights(network: SFCN, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights under their published names, in any float type, into `network`.

    Raises:
        CheckpointError: a key is missing, surplus, of another shape or no float; `source` is named.
    """
    ours = network.state_dict()
    theirs = {k: v for k, v in weights.items() if not k.startswith(AUXILIARY_HEADS)}
    problems = [f"missing '{name}'" for name in ours.keys() - theirs.keys()]
    problems += [f"surplus '{name}'" for name in theirs.keys() - ours.keys()]
    problems += [
        f"'{name}' is {tuple(theirs[name].shape)}, not {tuple(ours[name].shape)}"
        for name in ours.keys() & theirs.keys()
        if ours[name].shape != theirs[name].shape
    ]
    problems += [
        f"'{name}' is {str(theirs[name].dtype).removeprefix('torch.')}, not a float"
        for name in ours.keys() & theirs.keys()
        if ours[name].is_floating_point() and not theirs[name].is_floating_point()
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:3])
        raise CheckpointError(f"{source}: no weights of a superpixel network: {shown}")
    network.load_state_dict(theirs)


def _conv(width_in: int, width: int, stride: int, norm: type[nn.BatchNorm2d]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False),
        norm(width),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


def _deconv(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(width_in, width, 4, stride=2, padding=1),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _parameters_to_buffers(network: nn.Module) -> None:
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
