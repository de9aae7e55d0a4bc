"""Command line of checkpoints: released files become folders, folders get model cards or are mixed.
Run as `python -m caft.checkpoint convert CAFT-30M.pt out/`, `export`, `push` or `mix`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from caft.checkpoint import convert, load_model
from caft.checkpoint.export import export
from caft.checkpoint.mix import mix
from caft.checkpoint.towers import write_towers
from caft.documents import parse_json, read_text
from caft.errors import CAFTError, ConfigError
from caft.hub.repository import push_to_hub
from caft.model import CAFT


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; a CAFTError is one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    try:
        model = args.run(args)
    except CAFTError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
    trained = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.folder}: {model.config.name}, {trained / 1e6:,.1f}M parameters")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m caft.checkpoint", description="Work with CAFT checkpoints."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "convert",
        help="write a released .pt as a checkpoint folder",
        description="Write a released .pt (or any other checkpoint) as a checkpoint folder: "
        "model.safetensors, config.yaml and manifest.json. caft.load_model reads the folder and "
        "the .pt alike and gives the same numbers. No code in the .pt is run; what it holds "
        "besides the weights, such as optimiser state, is left out.",
    )
    command.add_argument("source", metavar="SOURCE", help="file, e.g. CAFT-30M.pt")
    command.add_argument("folder", metavar="FOLDER", help="to write; must not exist, or be empty")
    command.add_argument(
        "--config",
        metavar="JSON",
        help="released configuration (embed_dim, vision_cfg, text_cfg, text_coarse_cfg) of a "
        "model with other heads, groups or segments than CAFT-B",
    )
    command.set_defaults(run=_convert)
    command = commands.add_parser(
        "export",
        help="write a checkpoint as a folder to publish, with a model card",
        description="Write a checkpoint as a folder in the layout of Hugging Face's hub: "
        "model.safetensors, config.json, config.yaml, the recipe it was trained with if that lies "
        "beside the checkpoint, and README.md, a model card. caft.load_model reads the folder.",
    )
    command.add_argument("source", metavar="CHECKPOINT", help="folder or file, e.g. run1/final")
    command.add_argument(
        "folder", metavar="FOLDER", help="new, empty, a fresh clone, or an earlier export"
    )
    command.add_argument(
        "--license", metavar="ID", help="of the weights, as the hub spells it, e.g. cc-by-4.0"
    )
    command.set_defaults(run=_export)
    command = commands.add_parser(
        "towers",
        help="write a control whose towers are those of OpenAI's CLIP or of SigLIP",
        description="Write a checkpoint folder of a control with a flat image encoder whose towers "
        "have the weights of CLIP (both) or SigLIP (the image tower's patches and blocks), to "
        "start a training from. Prints what begins at random.",
    )
    command.add_argument("source", metavar="FILE", help=".safetensors, .pt or .bin")
    command.add_argument("folder", metavar="FOLDER", help="to write; must not exist, or be empty")
    command.add_argument("--model", default="clip_b16", help="clip_b16 (default) or flair_b16")
    command.set_defaults(run=_towers)
    command = commands.add_parser(
        "push",
        help="export a checkpoint and upload it to Hugging Face's hub",
        description="Write a checkpoint as `export` does and upload the folder to a repository of "
        "Hugging Face's hub, as one commit. The token is that of `hf auth login` or HF_TOKEN.",
    )
    command.add_argument("source", metavar="CHECKPOINT", help="folder or file, e.g. run1/final")
    command.add_argument("folder", metavar="ORG/NAME", help="repository; made if it is not there")
    command.add_argument("--license", metavar="ID", help="of the weights, e.g. cc-by-4.0")
    command.add_argument("--private", action="store_true", help="of a repository that is made")
    command.set_defaults(run=_push)
    command = commands.add_parser(
        "mix",
        help="write weights between a start and what was fine-tuned from it",
        description="Write a checkpoint folder whose weights are START_SHARE of the start's and "
        "the rest of the fine-tuned ones, as WiSE-FT mixes them.",
    )
    command.add_argument("start", metavar="START", help="folder or file")
    command.add_argument("tuned", metavar="TUNED", help="folder or file of the same architecture")
    command.add_argument("folder", metavar="FOLDER", help="to write; must not exist, or be empty")
    command.add_argument("--start-share", type=float, default=0.5, help="0 to 1; default 0.5")
    command.set_defaults(run=_mix)
    return parser


def _convert(args: argparse.Namespace) -> CAFT:
    config = None if args.config is None else _read_json(args.config)
    return convert(args.source, args.folder, config)


def _export(args: argparse.Namespace) -> CAFT:
    return export(args.source, args.folder, args.license)


def _towers(args: argparse.Namespace) -> CAFT:
    model, fresh = write_towers(args.source, args.folder, args.model)
    print(f"begin at random: {', '.join(fresh) or 'none'}")
    return model


def _push(args: argparse.Namespace) -> CAFT:
    print(push_to_hub(args.source, args.folder, license_id=args.license, private=args.private))
    return load_model(args.source)


def _mix(args: argparse.Namespace) -> CAFT:
    return mix(args.start, args.tuned, args.folder, args.start_share)


def _read_json(path: str) -> dict[str, Any]:
    try:
        value = parse_json(read_text(Path(path), ConfigError), path, ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value


if __name__ == "__main__":
    sys.exit(main())
