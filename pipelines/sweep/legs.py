"""The legs of a trunk: trainings at a constant rate, from one branch of a setting to the next ones.
What earlier commands trained is kept, so that every axis of a study may grow, in the middle too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caft.documents import parse_yaml
from caft.errors import DataError
from pipelines import storage
from pipelines.run_layout import CONFIG_COPY, STEP
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.points import Point, Setting


@dataclass(frozen=True)
class Leg:
    """One training of a trunk.

    Attributes:
        from_step: of the earlier leg that it continues; 0: from the start.
        steps: that cool-downs branch off, ascending; the leg ends at the last one.
        points: whose cool-downs do, of those that are asked for now.
    """

    name: str
    from_step: int
    steps: tuple[int, ...]
    points: tuple[Point, ...]


def legs_of(config: SweepConfig, setting: Setting, points: Sequence[Point]) -> list[Leg]:
    """Every leg that the points need, each after the one that it continues.

    Args:
        points: of the setting, from few to many samples.

    Raises:
        DataError: a leg of an earlier command whose configuration cannot be read.
    """
    wanted = {point.branches_at: point for point in points}
    found = _known(config, setting)
    saved = {step for _, steps in found.values() for step in steps}
    missing = [step for step in sorted(wanted) if step not in saved]
    # Those that continue the same checkpoint are one leg; where rates compete, the first branch is
    # a leg of its own.
    new: dict[int, list[int]] = {}
    alone = len(config.lr) > config.lr_kept and missing[:1] == sorted(wanted)[:1]
    for step in missing:
        first = alone and step == missing[0]
        base = max((s for s in saved if s < step), default=0)
        new.setdefault(base, []).append(step)
        if first:
            saved.add(step)
    for base, added in new.items():
        found[f"trunk-{setting.name}-{len(found)}"] = (base, tuple(added))
    legs: list[Leg] = []
    needed = set(wanted)
    for name, (base, steps) in sorted(found.items(), key=lambda leg: -leg[1][0]):
        if needed.intersection(steps):
            branches = tuple(wanted[step] for step in steps if step in wanted)
            legs.insert(0, Leg(name, base, steps, branches))
            needed.add(base)
    return legs


def _known(config: SweepConfig, setting: Setting) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Legs that earlier commands began: what each continues, and the steps that it saves."""
    folder = storage.join(config.output, "train")
    prefix = f"trunk-{setting.name}-"
    known = {}
    names = (name for name in storage.list_folders(folder) if name.startswith(prefix))
    for name in sorted(names, key=lambda name: int(name.removeprefix(prefix))):
        path = storage.join(folder, name, CONFIG_COPY)
        if not storage.exists(path):
            continue
        raw = parse_yaml(storage.read_bytes(path).decode(), path, DataError)
        start = raw.get("start_from") or {}
        checkpoint = str(start.get("checkpoint", f"{STEP}0")).rstrip("/")
        base = int(checkpoint.rsplit(STEP, 1)[-1])
        known[name] = (base, tuple(raw["checkpoint"]["at_steps"]))
    return known
