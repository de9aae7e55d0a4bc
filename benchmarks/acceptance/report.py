"""An acceptance as a page of Markdown, what was predicted beside what was measured.
Between the numbers of all sections and whoever decides whether the machine is used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PREDICTED = Path(__file__).resolve().parents[1] / "data" / "gpu_predicted.json"
GOOD_INGEST = 1.2  # times what the step asks for
LEAST_RECALL = 3  # times chance
LOSS_DIFFERENCE = 0.01  # of a compiled loss from the plain one
# A part of the measured step, and the phases of the prediction that it is made of.
PHASES = {
    "superpixels": ("superpixels",),
    "inputs": ("inputs",),
    "encode": ("loop",),
    "loss forward": ("loss forward",),
    "backward": ("backward", "reduce"),
    "optimiser": ("optimiser",),
    "rest": ("after the step", "average", "telemetry", "guard", "signals"),
}


def report(result: dict[str, Any]) -> tuple[str, bool]:
    """The page, and whether all that was checked holds."""
    lines = ["# Acceptance of GPUs", ""]
    if result["small"]:
        lines += ["Small form, on a CPU: it shows that the sections run. No number counts.", ""]
    checks: list[tuple[str, bool]] = []
    for name, about in SECTIONS.items():
        if name in result["sections"]:
            lines += [f"## {name.replace('_', ' ').capitalize()}", ""]
            lines += [*about(result["sections"][name], result, checks), ""]
    checks += [(f"{name}: {why}", False) for name, why in result["failed"].items()]
    lines += ["## Checks", ""]
    lines += [f"- {'holds' if holds else '**FAILS**'}: {what}" for what, holds in checks]
    return "\n".join(lines), all(holds for _, holds in checks)


def prediction(workers: int) -> dict[str, Any]:
    """That of the most workers that are not more than `workers`."""
    known = json.loads(PREDICTED.read_text())["steps"]
    return max((p for p in known if p["workers"] <= workers), key=lambda p: p["workers"])


def _environment(found: dict, result: dict, checks: list) -> Iterator[str]:
    for name in ("revision", "torch", "cuda", "driver", "nccl", "cpus", "memory_gib"):
        yield f"- {name.replace('_gib', ', GiB')}: {found.get(name)}"
    yield f"- shared memory, GiB: {found['shared_memory_gib']}"
    for n, card in enumerate(found["cards"]):
        faults = ", ".join(card["faults"]) or "no fault known"
        about = f"{card['name']}, {card['memory_gib']} GiB, reaches {card['reaches']}"
        yield f"- card {n}: {about}: {faults}"
        checks.append((f"card {n}: {faults}", not card["faults"]))
    if not result["small"]:
        checks.append((f"CUDA starts {found['problem']}".strip(), not found["problem"]))


def _parity(found: dict, result: dict, checks: list) -> Iterator[str]:
    yield "| precision | features, scores, losses | allowed | gradients | allowed |"
    yield "|---|---|---|---|---|"
    for name in ("float32", "bfloat16"):
        row = found[name]
        forward, backward = row["allowed"]
        yield (
            f"| {name} | {row['forward']:.1e} | {forward:.0e} | {row['gradients']:.1e} | "
            f"{backward:.0e} |"
        )
        checks.append((f"numbers on file in {name} (worst: {row['worst']})", row["holds"]))
    checks.append(("the same seeds as on file", found["seeds_equal"]))


def _all_reduce(found: dict, result: dict, checks: list) -> Iterator[str]:
    yield "| what | MB | ms | GB/s sent |\n|---|---|---|---|"
    for name, row in found.items():
        yield f"| {name} | {row['mb']:,.1f} | {row['ms']:.2f} | {row['gb_per_s']:,.1f} |"


def _step(found: dict, result: dict, checks: list) -> Iterator[str]:
    predicted = prediction(found["workers"])
    mfu = "unknown" if found["mfu"] is None else f"{found['mfu']:.0%}"
    yield (
        f"{found['model']}, {found['images']} images on each of {found['workers']} cards: "
        f"{found['step_ms']:.1f} ms (predicted for caft_b, {predicted['images']} images, "
        f"{predicted['workers']} H100: {predicted['step_ms']:.1f}), {found['images_per_s']:,.0f} "
        f"images/s a card, {mfu} MFU, {found['peak_gb']:.1f} GB (predicted "
        f"{predicted['peak_gb']:.1f}); the first step took {found['first_step_s']:.0f} s."
    )
    yield ""
    yield from _beside("part", found["parts_ms"], _by_part(predicted["parts_ms"]))
    yield ""
    yield from _beside("kernels", found["kinds_ms"], predicted["kinds_ms"])
    yield ""
    yield "| what costs most | times | ms |\n|---|---|---|"
    for name, times, ms in found["kernels"]:
        yield f"| `{name.replace('|', ' ')}` | {times} | {ms:.2f} |"
    plain, trained = found["losses"]["plain"], found["losses"]["trained"]
    equal = abs(trained - plain) <= LOSS_DIFFERENCE * abs(plain)
    checks.append((f"the first loss: {trained:.4f}, without compiling {plain:.4f}", equal))


def _by_part(phases: dict[str, float]) -> dict[str, float]:
    parts = {part: sum(phases.get(n, 0.0) for n in names) for part, names in PHASES.items()}
    return parts | {"step": sum(phases.values())}


def _beside(what: str, measured: dict, predicted: dict) -> Iterator[str]:
    yield f"| {what} | predicted ms | measured ms |\n|---|---|---|"
    for name in {**predicted, **measured}:
        row = [f"{side[name]:.1f}" if name in side else "" for side in (predicted, measured)]
        yield f"| {name} | {row[0]} | {row[1]} |"


def _plain(found: dict, result: dict, checks: list) -> Iterator[str]:
    sides = found["ms"]
    yield f"CAFT-B, {found['images']} images, one card, eager: {found['faster']:.1f} times as fast."
    yield ""
    yield "| ms | " + " | ".join(sides) + " |\n|---|" + "---|" * len(sides)
    for part in next(iter(sides.values())):
        yield f"| {part} | " + " | ".join(f"{side[part]:,.1f}" for side in sides.values()) + " |"


def _batches(found: dict, result: dict, checks: list) -> Iterator[str]:
    yield "| images on one card | images/s, eager | GB |\n|---|---|---|"
    for images, row in found["rates"].items():
        yield f"| {images} | {row['images_per_s']:,.0f} | {row['peak_gb']:.1f} |"
    if "does_not_fit" in found:
        yield f"| {found['does_not_fit']} | does not fit | |"


def _ingest(found: dict, result: dict, checks: list) -> Iterator[str]:
    yield f"{found['cores']} cores.\n"
    yield "| side | images/s | ms of processor an image |\n|---|---|---|"
    for name, row in found.items():
        if isinstance(row, dict):
            yield f"| {name} | {row['images_per_s']:,.0f} | {row['cpu_ms']:.2f} |"
    step = result["sections"].get("step")
    if step is not None and not result["small"]:
        asked = GOOD_INGEST * step["images_per_s"] * step["workers"]
        given = found["ours (Ray Data)"]["images_per_s"]
        what = f"ingest gives {given:,.0f} images/s, 1.2 times what all cards take is {asked:,.0f}"
        checks.append((what, given >= asked))


def _training(found: dict, result: dict, checks: list) -> Iterator[str]:
    tested = f"{found['scenes']} held-out scenes, in per cent"
    yield f"{found['steps']} steps of caft_xs on scenes; {tested}:\n"
    yield "| recall | chance | here |\n|---|---|---|"
    chance = {f"{way}_r{k}": k / found["scenes"] for way in ("t2i", "i2t") for k in (1, 5, 10)}
    for name, by_chance in chance.items():
        yield f"| {name} | {100 * by_chance:.1f} | {100 * found[name]:.1f} |"
    if not result["small"]:
        learned = found["t2i_r10"] >= LEAST_RECALL * chance["t2i_r10"]
        what = f"R@10 is at least {LEAST_RECALL} times chance: the stage learns on all cards"
        checks.append((what, learned))


SECTIONS: dict[str, Callable[[dict, dict, list], Iterator[str]]] = {
    "environment": _environment,
    "parity": _parity,
    "all_reduce": _all_reduce,
    "step": _step,
    "plain": _plain,
    "batches": _batches,
    "ingest": _ingest,
    "training": _training,
}
