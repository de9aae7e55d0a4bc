"""How well and how fast captions are cut into sentences: caft.captions, pysbd and blingfire.

Prints one table: the share of the labelled cases in tests/fixtures/sentences.jsonl that each cuts
exactly right, by topic, and sentences per second of one core on real captions. The two libraries
are no dependencies of this project:

    pip install pysbd blingfire && python benchmarks/sentences.py

All get single lines without "</s>", and final full stops and list marks do not count.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

from caft.captions import split_sentences

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tests" / "fixtures" / "sentences.jsonl"
CAPTIONS = ROOT / "benchmarks" / "data" / "iiw_docci_test.jsonl"
ROUNDS = 7
LIST_MARK = re.compile(r"^(?:[-*•–#]+|\(?\w{1,2}[.)])\s*(?=\w)")
FINAL_STOPS = ".。．｡।۔։።။"

Splitter = Callable[[str], list[str]]


def main() -> int:
    try:
        import blingfire
        import pysbd
    except ImportError as error:
        print(f"{error}; to compare with it: pip install pysbd blingfire", file=sys.stderr)
        return 1
    segmenter = pysbd.Segmenter(language="en", clean=False)
    splitters: dict[str, Splitter] = {
        "caft": split_sentences,
        "pysbd": segmenter.segment,
        "blingfire": lambda line: blingfire.text_to_sentences(line).split("\n"),
    }
    cases = read_jsonl(CASES)
    captions = [row["caption"] for row in read_jsonl(CAPTIONS)]
    print(f"| exactly right, % | cases | {' | '.join(splitters)} |\n|---|---{'|---' * 3}|")
    right = {
        name: [is_right(splitter, case) for case in cases] for name, splitter in splitters.items()
    }
    for topic in dict.fromkeys(case["topic"] for case in cases):
        print_shares(topic, right, [n for n, case in enumerate(cases) if case["topic"] == topic])
    print_shares("**all**", right, list(range(len(cases))))
    rates = sentences_per_s(splitters, captions)
    print(f"| sentences/s | | {' | '.join(f'{rate:,.0f}' for rate in rates.values())} |")
    return 0


def read_jsonl(path: Path) -> list[dict]:
    # not splitlines(): some cases hold line separators of Unicode
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def is_right(splitter: Splitter, case: dict) -> bool:
    lines = case["text"].replace("</s>", "\n").splitlines()
    found = [sentence for line in lines if line.strip() for sentence in splitter(line)]
    return normalised(found) == normalised(case["sentences"])


def normalised(sentences: list[str]) -> list[str]:
    bare = [LIST_MARK.sub("", sentence.strip()) for sentence in sentences]
    bare = [" ".join(sentence.rstrip(FINAL_STOPS).split()) for sentence in bare]
    return [
        sentence for sentence in bare if any(unicodedata.category(c)[0] in "LN" for c in sentence)
    ]


def print_shares(topic: str, right: dict[str, list[bool]], chosen: list[int]) -> None:
    shares = [100 * statistics.mean(results[n] for n in chosen) for results in right.values()]
    print(f"| {topic} | {len(chosen)} | {' | '.join(f'{share:.1f}' for share in shares)} |")


def sentences_per_s(splitters: dict[str, Splitter], captions: list[str]) -> dict[str, float]:
    """Median over alternating rounds; one count of sentences for all, so that rates compare."""
    count = sum(len(split_sentences(caption)) for caption in captions)
    times: dict[str, list[float]] = {name: [] for name in splitters}
    for _ in range(ROUNDS):
        for name, splitter in splitters.items():
            started = time.process_time()
            for caption in captions:
                splitter(caption)
            times[name].append(time.process_time() - started)
    return {name: count / statistics.median(spent) for name, spent in times.items()}


if __name__ == "__main__":
    sys.exit(main())
