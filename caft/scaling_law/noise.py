"""How much of a run's error is chance, and how much of that it shares with runs of its group.
Under every interval: repetitions of an experiment are drawn from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAME = 1e-6  # relative difference of what counts as the same
# Share of the groups' variance that a fit must leave for it to be told. A law of size absorbs all
# but a trace of three trunks of three sizes: scaled up, that would be many times all residuals.
LEFT_LEAST = 0.05


@dataclass(frozen=True)
class Noise:
    """Chance in the log error of n runs about a law, as mean squares of what a fit has left.

    A run's deviation is that of its group (one seed, one trunk of several cool-downs) plus its
    own. `between` estimates own variance + `weight` x the group's.
    """

    groups: NDArray[np.intp]  # (n,) the group of each run, from 0
    own: float  # variance of a run's own part
    own_freedom: float
    between: float = 0.0
    between_freedom: float = 0.0
    weight: float = 0.0  # 0: what groups share, if anything, cannot be told

    @property
    def spread(self) -> float:
        """Standard deviation of the log error of a new run of a new group."""
        return float(np.sqrt(self.own + self._shared(self.between, self.own)))

    def draw(self, replicates: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Deviations (R, n), and the standard deviation (R,) they were drawn with.

        Variances are themselves drawn, as likely as the residuals make them: mean square x freedom
        / chi^2. For a law linear in its parameters this gives Student's t exactly.
        """
        own = self.own * self.own_freedom / rng.chisquare(self.own_freedom, replicates)
        drawn = np.sqrt(own)[:, None] * rng.normal(size=(replicates, len(self.groups)))  # (R, n)
        if not self.weight:
            return drawn, np.sqrt(own)
        chi = rng.chisquare(self.between_freedom, replicates)
        shared = self._shared(self.between * self.between_freedom / chi, own)
        groups = rng.normal(size=(replicates, self.groups.max() + 1))
        drawn += (np.sqrt(shared)[:, None] * groups)[:, self.groups]
        return drawn, np.sqrt(own + shared)

    def _shared(self, between: Array | float, own: Array | float) -> Array:
        """Variance of the groups' part."""
        return np.maximum(np.asarray(between) - own, 0.0) / (self.weight or np.inf)


def estimate_noise(
    residuals: Array, derivatives: Array, groups: NDArray[np.intp], parameters: int
) -> Noise:
    """Noise of n runs by the method of moments, for what `parameters` fitted ones have left.

    With M the projection on what the fit cannot absorb and Z the membership of groups,
    r'r = own tr M + shared tr Z'MZ and r'ZZ'r = own tr Z'MZ + shared tr (Z'MZ)^2 on average.

    Args:
        residuals: (n,) log error over law.
        derivatives: (n, P) of the log law by the parameters.
        groups: (n,) from 0.
    """
    runs = len(residuals)
    square = float(residuals @ residuals)
    alone = Noise(groups, square / (runs - parameters), runs - parameters)
    if groups.max() in (0, runs - 1):  # one group, or each run its own: nothing to tell apart
        return alone
    span, sizes, _ = np.linalg.svd(derivatives, full_matrices=False)
    span = span[:, sizes > 1e-9 * sizes[0]]
    left = np.eye(runs) - span @ span.T  # (n, n)
    member = np.eye(groups.max() + 1)[groups]  # (n, G)
    within = member.T @ left @ member  # (G, G)
    trace, trace_square = float(np.trace(within)), float((within**2).sum())
    total_trace = float(np.trace(left))
    if trace < LEFT_LEAST * runs:
        return alone
    between = float(((member.T @ residuals) ** 2).sum()) / trace
    weight = trace_square / trace
    freedom = trace**2 / trace_square
    # Of the mean square of all residuals, `share` times the groups' variance is theirs.
    share = trace / total_trace
    if weight - share < SAME * weight:  # too few points to tell the two parts apart
        return alone
    total = square / total_trace
    shared = max((between - total) / (weight - share), 0.0)
    own_freedom = max(total_trace - freedom, 1.0)
    return Noise(groups, max(total - share * shared, 0.0), own_freedom, between, freedom, weight)
