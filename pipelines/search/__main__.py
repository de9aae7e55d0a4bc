"""Command line of search: python -m pipelines.search EMBEDDING "a caption" [--image FILE].
Reads what the embed stage wrote, on this machine and without a cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from caft.errors import ConfigError, StorageError
from pipelines import storage, user_paths
from pipelines.config import command
from pipelines.embed.embedding import open_embedding

RERANKED, HEAT_MAPS = 50, 4  # by default, of a model with parts


def search(args: argparse.Namespace) -> int:
    """Print what was found, and write its page.

    Raises:
        DataError: no embedding, an empty query, or an image that cannot be read.
        ConfigError: another model than the embedding's, or one without parts asked for them.
    """
    embedding = open_embedding(user_paths.usable_path(args.embedding, "EMBEDDING").rstrip("/"))
    from pipelines.search.model import (  # PyTorch, which refusing a folder does not need
        has_parts,
        make_query,
        open_model,
        require_parts,
    )
    from pipelines.search.page import search_page
    from pipelines.search.rank import rank

    adapter = open_model(embedding, args.checkpoint)
    for option, value in (("--rerank", args.rerank), ("--heat-maps", args.heat_maps)):
        if value:
            require_parts(adapter, option)
    parts = has_parts(adapter) and args.caption is not None
    rerank = args.rerank if args.rerank is not None else RERANKED * parts
    heat_maps = args.heat_maps if args.heat_maps is not None else HEAT_MAPS * parts
    query = make_query(adapter, args.caption, args.image)
    _ = embedding.whole  # opened, and the first time written in one piece, before the clock starts
    started = time.monotonic()
    hits = rank(embedding, adapter, query, args.count, rerank, args.alpha, args.approximate)
    seconds = time.monotonic() - started
    for number, hit in enumerate(hits, 1):
        score = "" if hit.score is None else f"score {hit.score:7.2f}  "
        print(f"{number:3}  {score}cosine {hit.cosine:.3f}  {hit.url}")
    again = f", {min(rerank, embedding.rows)} of them ranked again by their parts" if rerank else ""
    print(f"search: {embedding.rows:,} images in {seconds:.2f} s{again}", flush=True)
    if not hits:
        return 0
    facts = {
        "embedding": embedding.folder,
        "model": f"{adapter.name}, step {adapter.step}",
        "checkpoint": args.checkpoint or str(embedding.model["checkpoint"]),
        "score": f"{1 - args.alpha:g} x whole logit + {args.alpha:g} x mean logit of the parts"
        if rerank
        else "cosine",
    }
    page = search_page(embedding, adapter, query, hits, heat_maps, args.caption, facts)
    place = Path(args.page).absolute()
    try:
        storage.write_bytes(str(place), page.encode())
    except StorageError as error:
        raise ConfigError(f"--page: {error}") from None
    print(f"page: {place}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.search", description=__doc__)
    parser.add_argument("embedding", metavar="EMBEDDING", help="output of the embed stage")
    parser.add_argument("caption", nargs="?", help="what the images show, in as many sentences")
    parser.add_argument("--image", metavar="FILE", help="look for images like this one")
    parser.add_argument("--count", type=_count, default=10, help="images to find; default 10")
    parser.add_argument(
        "--rerank", type=_whole, metavar="N",
        help=f"rank the N best again by the caption's parts; 0: none; default {RERANKED}",
    )  # fmt: skip
    parser.add_argument(
        "--heat-maps", type=_whole, metavar="N",
        help=f"images shown with a heat map for each sentence; default {HEAT_MAPS}",
    )  # fmt: skip
    parser.add_argument(
        "--alpha", type=_share, default=0.3, help="weight of the parts; default 0.3"
    )
    parser.add_argument(
        "--approximate", action="store_true",
        help="compare what a FAISS index proposes, for tens of millions of images",
    )  # fmt: skip
    parser.add_argument("--checkpoint", help="where the embedding's model is now, if it was moved")
    parser.add_argument("--page", metavar="FILE", default="search.html", help="default search.html")
    return parser


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


def _count(text: str) -> int:
    if _whole(text) == 0:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a weight from 0 to 1")
    return value


def main(argv: Sequence[str]) -> int:
    """Console entry."""
    args = _parser().parse_args(argv)
    return command(lambda: search(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
