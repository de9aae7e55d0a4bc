"""Why a worker group is to leave, and where the driver leaves that for it to read.
By itself, so that the board's process starts without torch."""

from __future__ import annotations

from enum import IntEnum

import ray


class Notice(IntEnum):
    """Why a worker group leaves before the last step; the larger one wins."""

    NONE = 0
    GROW = 1  # there is room for more workers
    NODE_LEAVES = 2  # Ray was told that a node with workers will be taken away
    STOP = 3  # somebody wants the run to end here


@ray.remote(num_cpus=0)
class NoticeBoard:
    """Where the driver leaves a notice for the workers."""

    def __init__(self) -> None:
        self._notice = Notice.NONE

    def post(self, notice: Notice) -> None:
        self._notice = max(self._notice, notice)

    def read(self) -> Notice:
        return self._notice
