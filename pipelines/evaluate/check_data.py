"""`--check-data`: for each benchmark of a configuration what is there, and what to get from where.
Looks at files alone, before a checkpoint or a cluster is needed."""

from __future__ import annotations

from collections.abc import Iterator

from caft.errors import CAFTError
from pipelines.evaluate.config import AnyBenchmarkConfig, EvaluateConfig, PublishedConfig
from pipelines.evaluate.opening import open_benchmark
from pipelines.evaluate.sets.inventory import Inventory, take_inventory

NAMED = 10  # missing files that are listed


def check_data(config: EvaluateConfig) -> int:
    """Print what every benchmark has and lacks. Returns the exit code: 1 if one lacks something."""
    lacking = 0
    for number, benchmark in enumerate(config.located()):
        complete, lines = _checked(benchmark, f"benchmarks.{number}")
        lacking += not complete
        print(f"{'complete' if complete else 'lacking':<8}  {benchmark.name}", flush=True)
        for line in lines:
            print(f"          {line}")
    count = len(config.benchmarks)
    print(f"\n{count - lacking} of {count} benchmarks are complete", flush=True)
    return 1 if lacking else 0


def _checked(config: AnyBenchmarkConfig, field: str) -> tuple[bool, list[str]]:
    """Whether a benchmark is all there, and lines about it."""
    try:
        if isinstance(config, PublishedConfig):
            inventory = take_inventory(config, field)
            return not inventory.problems, list(_lines(config, inventory))
        benchmark = open_benchmark(config, field)
    except CAFTError as error:
        return False, [str(error)]
    texts = f" with {len(benchmark.captions):,} captions" if benchmark.captions else ""
    return True, [f"{len(benchmark.urls):,} images{texts} in {benchmark.rows.place}"]


def _lines(config: PublishedConfig, inventory: Inventory) -> Iterator[str]:
    yield f"{config.set}, split {inventory.split}, in {config.root}"
    if inventory.failure:
        yield inventory.failure
    else:
        yield _count("images listed", inventory.entries, inventory.published.images)
        yield _count("texts listed", inventory.texts, inventory.published.texts)
        yield _count("images there", len(inventory.present), inventory.published.images)
    for path in inventory.missing[:NAMED]:
        yield f"missing: {path}"
    if len(inventory.missing) > NAMED:
        yield f"missing: {len(inventory.missing) - NAMED:,} more"
    if inventory.problems:
        yield f"get it from {inventory.source}"


def _count(what: str, found: int, published: int | None) -> str:
    if published is None:
        return f"{what}: {found:,}"
    return f"{what}: {found:,}, published: {published:,}" + ("" if found == published else "  <--")
