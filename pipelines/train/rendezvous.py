"""Brings the workers of one group together without listening to strangers: torch's store and gloo
are bound to the interface that the workers share. Handed to Ray Train by attempts.py."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

LOOPBACK = "127.0.0.1"
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
EVERY_INTERFACE = ""

_stores: list[dist.TCPStore] = []  # of rank 0's process, from its opening until the group meets


@dataclass
class SharedInterface(TorchConfig):
    """Ray Train's own set-up of torch, but for where it listens."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        places = worker_group.execute(_place)  # (node, address) of each worker
        here = len({node for node, _ in places}) == 1
        address = LOOPBACK if here else places[0][1]
        size, timeout_s = len(places), backend_config.timeout_s
        backend = backend_config.backend or (
            "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        )
        port = worker_group.execute_single(0, _open_store, address, size, timeout_s)
        worker_group.execute(_set_torch_distributed_env_vars)
        joining = [
            worker_group.execute_single_async(
                rank, _join, backend, rank, size, (address, port), here, timeout_s
            )
            for rank in range(size)
        ]
        ray.get(joining)


def _place() -> tuple[str, str]:
    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()


def _open_store(address: str, size: int, timeout_s: int) -> int:
    """Start the store on rank 0; its port."""
    listening = _listening(address)
    port = listening.getsockname()[1]
    _stores[:] = [
        dist.TCPStore(
            address,
            port,
            size,
            is_master=True,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
    ]
    return port


def _listening(address: str) -> socket.socket:
    """A socket that listens at `address`, on a free port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.bind((address, 0))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        print(
            f"train: {address}, by which the nodes know this one, is of none of its interfaces; "
            "the workers' store listens on all of them",
            flush=True,
        )
        listening.bind((EVERY_INTERFACE, 0))
    listening.listen(socket.SOMAXCONN)
    return listening


def _join(
    backend: str, rank: int, size: int, store_at: tuple[str, int], here: bool, timeout_s: int
) -> None:
    """Meet the other workers at the store of rank 0."""
    timeout = timedelta(seconds=timeout_s)
    address, port = store_at
    own = LOOPBACK if here else ray.util.get_node_ip_address()
    if interface := interface_of(own):
        os.environ.setdefault(GLOO_INTERFACE, interface)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    if rank == 0:
        store = _stores.pop()
    else:
        store = dist.TCPStore(address, port, size, timeout=timeout, wait_for_workers=False)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def interface_of(address: str) -> str | None:
    """The network interface whose address, or whose loopback network, it is; None if none."""
    wanted = ipaddress.ip_address(address)
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            own = ipaddress.ip_address(entry.address.partition("%")[0])
            if own == wanted or (own.is_loopback and wanted.is_loopback):
                return name
    return None
