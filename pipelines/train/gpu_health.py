"""Which cards of a machine have failed, and keeping worker groups off them.
Asked before every worker group of a run on GPUs; without nvidia-ml-py all cards pass."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# What the driver reports of broken hardware; others come from programs, by NVIDIA's list.
XIDS_OF_HARDWARE = (48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120, 140)
BOOT = Path("/proc/sys/kernel/random/boot_id")  # a restart of the machine resets its cards
FOLDER = Path(tempfile.gettempdir()) / f"caft-gpu-faults-{os.getuid()}"
LISTEN_MS = 1000
SETTLE_S = 15.0  # in which a group that has ended gives its cards back


def faults(card: int) -> list[str]:
    """What is wrong with the card of that number on this machine; empty where nothing is, or
    where nvidia-ml-py is not installed."""
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(card)
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError as error:
        return [f"it does not answer ({error})"]
    found = [f"Xid {xid}" for xid in _noted_xids(uuid)]
    with contextlib.suppress(nvml.NVMLError):  # cards without ECC
        count = nvml.nvmlDeviceGetTotalEccErrors(
            handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        )
        if count:
            found.append(f"{count} uncorrectable ECC errors")
    with contextlib.suppress(nvml.NVMLError):
        if nvml.nvmlDeviceGetRemappedRows(handle)[3]:
            found.append("rows of memory that cannot be remapped")
    return found


def watch_xids(card: int) -> threading.Thread | None:
    """Note Xid errors of a card from now on, for those who ask for `faults` after this process;
    None without nvidia-ml-py."""
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(card)
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        events = nvml.nvmlEventSetCreate()
        nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
    except nvml.NVMLError:  # a card without events: it is asked in other ways
        return None

    def listen() -> None:
        while True:
            try:
                event = nvml.nvmlEventSetWait_v2(events, LISTEN_MS)
            except nvml.NVMLError_Timeout:
                continue
            except nvml.NVMLError:
                return
            if event.eventData in XIDS_OF_HARDWARE:
                _note(uuid, int(event.eventData))

    thread = threading.Thread(target=listen, name="Xid errors", daemon=True)
    thread.start()
    return thread


def _note(uuid: str, xid: int) -> None:
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    with (FOLDER / uuid).open("a") as file:
        file.write(f"{_boot()} {xid}\n")


def _noted_xids(uuid: str) -> list[int]:
    """Since this machine started, each once."""
    try:
        lines = (FOLDER / uuid).read_text().split("\n")
    except OSError:
        return []
    pairs = [line.split(" ") for line in lines if line.count(" ") == 1]
    return sorted({int(xid) for boot, xid in pairs if boot == _boot() and xid.isdecimal()})


def _boot() -> str:
    return BOOT.read_text().strip() if BOOT.exists() else "unknown"


def _nvml() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return None
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@ray.remote(num_cpus=0)
def _faults_of(cards: int) -> dict[int, list[str]]:
    """Of a node's cards that have failed."""
    return {card: found for card in range(cards) if (found := faults(card))}


@ray.remote(num_cpus=0, num_gpus=1)
class _Holder:
    """Occupies a card."""

    def card(self) -> int:
        return int(ray.get_gpu_ids()[0])


class Quarantine:
    """Cards of the cluster that failed, occupied for as long as this job runs, so that Ray gives
    them to no worker."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], Any] = {}

    def update(self) -> None:
        """Check the cards of every node, and hold those that have failed since the last time. To
        be called while no workers run. Prints a line for each."""
        nodes = {n["NodeID"]: n for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")}
        checks = {
            node: _faults_of.options(scheduling_strategy=_on(node)).remote(
                int(about["Resources"]["GPU"])
            )
            for node, about in nodes.items()
        }
        for node, check in checks.items():
            try:
                found = ray.get(check, timeout=SETTLE_S)
            except Exception:  # the node has gone: nobody is given its cards
                continue
            new = {card: what for card, what in found.items() if (node, card) not in self._held}
            if new:
                self._hold(nodes[node], new)

    def _hold(self, node: dict[str, Any], failed: dict[int, list[str]]) -> None:
        """Ask for all cards of the node that are free, and keep those that have failed."""
        name = node["NodeID"]
        already = sum(1 for held, _ in self._held if held == name)
        holders = [
            _Holder.options(scheduling_strategy=_on(name)).remote()  # type: ignore[attr-defined]
            for _ in range(int(node["Resources"]["GPU"]) - already)
        ]
        cards = {holder.card.remote(): holder for holder in holders}
        ready, _ = ray.wait(list(cards), num_returns=len(cards), timeout=SETTLE_S)
        given = {ray.get(answer): cards[answer] for answer in ready}
        for card, what in failed.items():
            if card in given:
                self._held[name, card] = given[card]
                then = "no worker is given it while this run lasts"
            else:
                then = "another program uses it, so workers may still be given it"
            print(
                f"train: node {node['NodeManagerAddress']}: card {card} has failed: "
                f"{', '.join(what)}; {then}",
                flush=True,
            )
        kept = list(self._held.values())
        for holder in holders:
            if holder not in kept:
                ray.kill(holder)


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)
