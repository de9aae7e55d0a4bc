"""Part scores of N images with N captions of four chunks: ours, and the plain form.

    python benchmarks/evaluate.py [--threads 2] [--images 256]

Four forms, all float32: "per pair" attends with a caption's queries to an image's segments, pair
by pair, and projects both each time; "per image" is the published way, which takes all queries to
one image at a time and projects and normalises them again for each; "hoisted" is
`CAFT.part_scores`, which projects queries once; "ours" is caft.scoring, whose rows are counted and
forgotten. The first two keep all N x 4N logits. Features are random, of CAFT-B's sizes; the pool
has random weights.

Each form runs in a process of its own and is timed on a few of the N images (and "per pair" on a
few captions), since all of them cost the same; times are for all. Peak memory is what the process
grew by beyond its inputs. Last, the floating-point operations of our scores, counted while they
run, and those of encoding CAFT-B make a time for whole benchmarks on one GPU at stated rates.
"""

from __future__ import annotations

import argparse
import time
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from caft.attention_pool import AttentionPool
from caft.retrieval import PreparedTexts, ScoreKind, image_tiles, own_scores, score_rows, tally
from caft.scoring import IMAGE_TILE, Logit, PartScorer

WIDTH, HEADS, SEGMENTS, CHUNKS = 512, 8, 64, 4  # CAFT-B
LOGIT = Logit(14.3, -10.0)
Scored = tuple[Tensor, float]  # mean logits (2, T) of the first images, share of the work done
COUNTS = (500, 1000, 2000)
BENCHMARKS = {"DCI": 7805, "ShareGPT4V-10k": 10000}
# Forward GFLOP of CAFT-B: an image with SFCN, and four chunks padded to 77 tokens.
ENCODING_GFLOP = 28.6 + 31.8 / 2
GPU = "A100: 60% of 19.5 TFLOP/s in float32 for scores, 40% of 312 in bfloat16 for encoding"
SCORING_FLOPS, ENCODING_FLOPS = 0.6 * 19.5e12, 0.4 * 312e12


class PartOnly:
    """The part scorer alone, as `caft.retrieval` takes scorers."""

    components = ("part",)

    def __init__(self, pool: AttentionPool) -> None:
        self.part = PartScorer(pool, LOGIT)

    def to(self, device: str) -> PartOnly:
        return self

    def prepare_images(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.part.prepare_images(images["fine"])

    def prepare_texts(self, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.part.prepare_texts(texts["parts"])

    def tile(self, images, texts, components) -> dict[str, Tensor]:
        return {"part": self.part(images, texts)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=256, help="most images that are timed")
    args = parser.parse_args()
    print(
        f"{args.threads} threads, float32; at most {args.images} of N images timed, times for N\n"
    )
    print("| N x 4N | form | seconds | times ours | peak MiB | greatest difference |")
    print("|---|---|---|---|---|---|")
    for count in COUNTS:
        timed = min(count, args.images)
        results = {name: in_process(name, count, timed, args.threads) for name in FORMS}
        fastest, _, reference = results["ours"]
        for name, (seconds, mebibytes, logits) in results.items():
            difference = (logits - reference[:, : logits.shape[1]]).abs().max().item()
            print(
                f"| {count:,} x {CHUNKS * count:,} | {name} | {seconds:.1f} "
                f"| {seconds / fastest:.1f} | {mebibytes:,.0f} | {difference:.1e} |",
                flush=True,
            )
    predict()
    return 0


def in_process(name: str, count: int, timed: int, threads: int) -> tuple[float, float, Tensor]:
    """Seconds for all pairs, MiB of growth, and the first rows' logits of one form."""
    context = get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure, (name, count, timed, threads))


@torch.inference_mode()
def measure(name: str, count: int, timed: int, threads: int) -> tuple[float, float, Tensor]:
    torch.set_num_threads(threads)
    pool, fine, parts = inputs(count)
    FORMS[name](pool, fine[:2], parts[:256], 2)  # libraries and caches are warm now
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = resident_mebibytes("VmRSS")
    started = time.perf_counter()
    logits, share = FORMS[name](pool, fine, parts, timed)
    seconds = (time.perf_counter() - started) / share
    return seconds, resident_mebibytes("VmHWM") - before, logits.clone()


def resident_mebibytes(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**10


def inputs(count: int) -> tuple[AttentionPool, Tensor, Tensor]:
    """A pool, fine segments (N, M, D) that share what segments of an image share, and parts."""
    torch.manual_seed(0)
    pool = AttentionPool(WIDTH, HEADS).eval()
    for linear in (pool.to_q, pool.to_k, pool.to_v, pool.proj):
        linear.bias.normal_(std=0.1)
    fine = torch.randn(count, SEGMENTS, WIDTH) + torch.randn(count, 1, WIDTH)
    return pool, fine, torch.randn(count, CHUNKS, WIDTH)


def per_pair(pool: AttentionPool, fine: Tensor, parts: Tensor, timed: int) -> Scored:
    matrix = torch.zeros(len(fine), *parts.shape[:2])  # (N, N, 4)
    images, texts = min(2, timed), min(256, len(parts))
    for n in range(images):
        for t in range(texts):
            keys, values = pool.keys_values(fine[n : n + 1])
            pooled = pool(pool.queries(parts[t : t + 1]), keys, values)  # (1, 4, D)
            matrix[n, t] = LOGIT(F.cosine_similarity(pooled[0], parts[t], dim=-1))
    return matrix[:2, :texts].mean(dim=-1), images * texts / matrix[..., 0].numel()


def per_image(pool: AttentionPool, fine: Tensor, parts: Tensor, timed: int) -> Scored:
    matrix = torch.zeros(len(fine), parts.shape[0] * parts.shape[1])  # (N, 4N)
    texts = parts.flatten(0, 1)
    for n in range(timed):
        queries = pool.queries(texts[None])  # (1, 4N, D), for this image again
        keys, values = pool.keys_values(fine[n : n + 1])
        q = queries.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        weights = (q @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        pooled = pool.proj((weights @ values).transpose(1, 2).flatten(2))[0]  # (4N, D)
        matrix[n] = LOGIT(F.cosine_similarity(pooled, texts, dim=-1))
    return matrix[:2].view(2, -1, CHUNKS).mean(dim=-1), timed / len(fine)


def hoisted(pool: AttentionPool, fine: Tensor, parts: Tensor, timed: int) -> Scored:
    texts = parts.flatten(0, 1)
    queries, target = pool.queries(texts[None]), F.normalize(texts, dim=-1)
    keys, values = pool.keys_values(fine[:timed])
    rows = []
    for n in range(timed):
        pooled = pool(queries, keys[n : n + 1], values[n : n + 1])[0]
        rows.append((F.normalize(pooled, dim=-1) * target).sum(dim=-1))
    logits = LOGIT(torch.stack(rows)[:2].view(2, -1, CHUNKS).mean(dim=-1))
    return logits, timed / len(fine)


def ours(pool: AttentionPool, fine: Tensor, parts: Tensor, timed: int) -> Scored:
    """Tile by tile, with every row counted as the evaluate stage counts it."""
    scorer, owner = PartOnly(pool), torch.arange(len(parts))
    texts = PreparedTexts.of(scorer, {"parts": parts})
    first_rows = torch.empty(0)
    for first, tile in image_tiles({"fine": fine[:timed]}):
        starts = range(0, len(owner), texts.tile)
        rows = score_rows(scorer, tile, texts, [ScoreKind("part")], starts)["part"]
        here = owner[first : first + len(rows)]
        own = torch.zeros(len(owner))
        own[here] = own_scores(rows, here, here - first)
        tally(rows, first, owner, own, k=5)
        first_rows = first_rows if len(first_rows) else rows[:2].clone()
    return first_rows, timed / len(fine)


FORMS = {"ours": ours, "hoisted": hoisted, "per image": per_image, "per pair": per_pair}


@torch.inference_mode()
def predict() -> None:
    """Times of whole benchmarks on one GPU, from counted operations and stated rates."""
    pool, fine, parts = inputs(2 * IMAGE_TILE)
    scorer = PartOnly(pool)
    texts = PreparedTexts.of(scorer, {"parts": parts})
    with FlopCounterMode(display=False) as counter:
        starts = range(0, texts.count, texts.tile)
        for _, tile in image_tiles({"fine": fine}):
            score_rows(scorer, tile, texts, [ScoreKind("part")], starts)
    with FlopCounterMode(display=False) as once:
        scorer.prepare_images({"fine": fine})
    tiles = counter.get_total_flops() - once.get_total_flops()
    per_query = tiles / (len(fine) * texts.count * CHUNKS)
    print(f"\nOperations per image and sub-caption, counted: {per_query:,.0f}")
    print(f"{GPU}\n\n| benchmark | queries | scores, s | encoding, s |\n|---|---|---|---|")
    for name, count in BENCHMARKS.items():
        queries = CHUNKS * count**2
        scores, encoding = queries * per_query / SCORING_FLOPS, count * ENCODING_GFLOP * 1e9
        print(
            f"| {name} | {queries / 1e6:,.0f} M | {scores:.0f} | {encoding / ENCODING_FLOPS:.0f} |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
