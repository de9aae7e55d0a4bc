"""The front: the runs that were best for their compute. First step of laws in compute alone, which
are fitted to it; the other runs were not compute-optimal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pareto_front(compute: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.intp]:
    """Positions of the runs that no run of as little compute does as well as, from the least
    compute to the most."""
    order = np.lexsort([error, compute])
    best = np.minimum.accumulate(error[order])
    first = np.concatenate([[True], best[1:] < best[:-1]]) if len(order) else np.array([], bool)
    return order[first]


def front(
    compute: NDArray[np.float64], error: NDArray[np.float64], bins: int | None
) -> NDArray[np.intp]:
    """Positions of the Pareto front, or of the lower envelope of so many bins if they are given."""
    return pareto_front(compute, error) if bins is None else lower_envelope(compute, error, bins)


def lower_envelope(
    compute: NDArray[np.float64], error: NDArray[np.float64], bins: int
) -> NDArray[np.intp]:
    """Positions of the run with the least error in each of `bins` equal intervals of log compute,
    from the least compute to the most; empty intervals give none. With 0 bins, every run in the
    order of its compute."""
    order = np.argsort(compute, kind="stable")
    if bins == 0:
        return order
    place = np.log(compute[order])
    edges = np.linspace(place[0], place[-1], bins + 1)
    interval = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, bins - 1)
    best = [
        members[np.argmin(error[members])]
        for number in range(bins)
        if len(members := order[interval == number])
    ]
    return np.array(best, dtype=np.intp)
