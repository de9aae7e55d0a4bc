"""How runs deviate from a law: chance of a run, chance that a group shares, and misfit of the form.
Under every interval: repetitions of an experiment, and runs beyond it, are drawn from it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Misfit is a smooth function of the logarithms of the inputs (a Gaussian process, as in Kennedy &
# O'Hagan, Bayesian calibration of computer models, 2001). What it is like cannot be read off a few
# dozen runs, so every size and length below is weighed by how well it explains the residuals.
MISFIT_RATIOS = (0.7, 1.4, 2.8, 5.6)  # standard deviation of misfit over that of chance
GROUP_RATIOS = (0.0, 0.5, 1.0, 2.0)  # of what a group shares, likewise
LENGTHS = (1.0, 2.0, 4.0)  # over which misfit changes, in e-folds of an input
MOST_RUNS = 250  # that candidates are weighed on; of more runs, as many evenly chosen ones
MOST_PLACES = 150  # where misfit is drawn; nearer ones share it
FIRST_STEP = 0.05  # between places that are told apart, in e-folds
NEGLIGIBLE = 1e-3  # probability of a candidate that is left out where that saves time
JITTER = 1e-6  # keeps a smooth covariance invertible
OUTLYING = 4.0  # normalised median absolute deviations beyond which a run is an outlier
LEAST_FREEDOM_FOR_MAD = 10  # fewer residuals have no deviation that could be gone by
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
EXACT = 1e-6  # log error below which runs without noise differ by rounding
LEAST_CHANCE = 5e-5  # of a run, in log error: none is measured or printed more exactly
# Share of the groups' variance that a fit must leave for it to be told. A law of size absorbs all
# but a trace of three trunks of three sizes: scaled up, that would be many times all residuals.
LEFT_LEAST = 0.05


@dataclass(frozen=True)
class Candidate:
    """One way in which runs may deviate; ratios are over the chance of a single run."""

    misfit: float
    lengths: tuple[float, ...]  # one for each coordinate
    group: float

    def kernel(self, one: Array, other: Array) -> Array:
        """Correlation (n, m) of the misfit at places (n, F) and (m, F)."""
        scaled = [places / np.array(self.lengths) for places in (one, other)]
        squares = [(places**2).sum(axis=1) for places in scaled]
        distance = squares[0][:, None] + squares[1][None] - 2 * scaled[0] @ scaled[1].T
        return np.exp(-np.maximum(distance, 0.0) / 2)


@dataclass(frozen=True)
class Deviations:
    """What n runs tell of how they deviate from a fit: candidates with their probabilities."""

    places: Array  # (n, F) coordinates of the runs
    groups: NDArray[np.intp]  # (n,) from 0
    scale: Array  # (n,) chance of a run over that of most
    candidates: tuple[Candidate, ...]
    probability: Array  # (K,)
    variance: Array  # (K,) of a single run's chance, as the candidate explains the residuals
    freedom: int
    groups_told: bool  # whether what groups share can be told

    def spread(self) -> float:
        """Standard deviation of the log error of a new run of a new group about the law's
        smooth misfit."""
        shared = np.array([c.group for c in self.candidates]) ** 2
        return float(np.sqrt(self.probability @ (self.variance * (1 + shared))))

    def misfit(self) -> float:
        """Standard deviation of what the law misses beyond that, among the runs."""
        sizes = np.array([c.misfit for c in self.candidates]) ** 2
        return float(np.sqrt(self.probability @ (self.variance * sizes)))

    def expected(self, span: Array, places: Array, beyond: Array) -> Array:
        """Standard deviation (m,) of the log error of new runs about the law, to first order.

        Args:
            span: (n, P) derivatives of the log law of the runs by the parameters.
            places: (m, F) of the new runs.
            beyond: (m, P) derivatives there.
        """
        reach = beyond @ np.linalg.pinv(span)  # (m, n) by how much each run moves the law there
        member = (self.groups[:, None] == self.groups[None]).astype(float)
        total = np.zeros(len(places))
        for candidate, variance, probability in zip(
            self.candidates, self.variance, self.probability, strict=True
        ):
            if probability < NEGLIGIBLE:
                continue
            square, shared = candidate.misfit**2, candidate.group**2
            among = square * candidate.kernel(self.places, self.places) + shared * member
            among[np.diag_indices(len(among))] += self.scale**2
            across = square * candidate.kernel(places, self.places)
            total += (probability * variance) * (
                1 + shared + square
                - 2 * (reach * across).sum(axis=1)
                + ((reach @ among) * reach).sum(axis=1)
            )  # fmt: skip
        return np.sqrt(total)

    def draw(self, replicates: int, rng: np.random.Generator, factor: float = 1.0) -> Draws:
        """Deviations of as many repetitions of the experiment, larger by `factor`.

        Variances are themselves drawn, as likely as the residuals make them: mean square x freedom
        / chi^2. For a law linear in its parameters this gives Student's t exactly.
        """
        chosen = rng.choice(len(self.candidates), replicates, p=self.probability)
        chi = rng.chisquare(self.freedom, replicates)
        own = factor * np.sqrt(self.variance[chosen] * self.freedom / chi)  # (R,)
        centres, cell = _cells(self.places)
        smooth = np.zeros((replicates, len(centres)))
        for number in np.unique(chosen):
            mine = chosen == number
            root = np.linalg.cholesky(_jittered(self.candidates[number].kernel(centres, centres)))
            normal = rng.normal(size=(mine.sum(), len(centres)))
            smooth[mine] = self.candidates[number].misfit * normal @ root.T
        group = np.array([self.candidates[number].group for number in chosen])
        shared = rng.normal(size=(replicates, self.groups.max() + 1))[:, self.groups]
        single = rng.normal(size=(replicates, len(self.groups))) * self.scale
        return Draws(
            self.candidates,
            chosen,
            centres,
            own[:, None] * smooth,
            own[:, None] * (smooth[:, cell] + group[:, None] * shared),
            own[:, None] * single,
            own,
            own * np.sqrt(1 + group**2),
        )


@dataclass(frozen=True)
class Draws:
    """Deviations in R repetitions of an experiment of n runs."""

    candidates: tuple[Candidate, ...]
    chosen: NDArray[np.intp]  # (R,)
    centres: Array  # (M, F)
    smooth: Array  # (R, M) misfit at the centres
    common: Array  # (R, n) misfit and groups' chance at the runs
    single: Array  # (R, n) each run's own chance
    own: Array  # (R,) its standard deviation
    spreads: Array  # (R,) standard deviation of a new run of a new group

    def misfit(self, places: Array) -> Array:
        """The same misfit at new places (m, F), (R, m): near the runs as it is there, far from
        them any other value."""
        rng = np.random.default_rng(0)
        found = np.empty((len(self.chosen), len(places)))
        for number in np.unique(self.chosen):
            mine, candidate = self.chosen == number, self.candidates[number]
            across = candidate.kernel(places, self.centres)  # (m, M)
            solved = np.linalg.solve(
                _jittered(candidate.kernel(self.centres, self.centres)), across.T
            )
            left = np.sqrt(np.maximum(1 - (across * solved.T).sum(axis=1), 0.0))  # (m,)
            sizes = candidate.misfit * self.own[mine, None] * left
            found[mine] = self.smooth[mine] @ solved + sizes * rng.normal(size=sizes.shape)
        return found


def weigh(
    residuals: Array, derivatives: Array, places: Array, groups: NDArray[np.intp], scale: Array
) -> Deviations:
    """How n runs deviate from what a fit with P parameters has left of them.

    Each candidate's probability is the likelihood of what the parameters cannot absorb
    (restricted likelihood), its variance integrated out; outliers have no part in it.

    Args:
        residuals: (n,) log error over law.
        derivatives: (n, P) of the log law by the parameters.
        places: (n, F) coordinates of the runs, in e-folds.
        groups: (n,) from 0.
        scale: (n,) chance of a run over that of most.
    """
    parameters = derivatives.shape[1]
    used = np.flatnonzero(~outliers(residuals / scale, parameters))
    used = used[np.linspace(0, len(used) - 1, min(len(used), MOST_RUNS)).astype(int)]
    span, sizes, _ = np.linalg.svd(derivatives[used] / scale[used, None], full_matrices=False)
    span = span[:, sizes > 1e-9 * sizes[0]]  # (u, Q)
    target = residuals[used] / scale[used]
    freedom = max(len(used) - parameters, 1)
    told = _groups_told(span, groups[used])
    member = (groups[used][:, None] == groups[used][None]).astype(float)
    unscaled = 1 / (scale[used, None] * scale[None, used])
    candidates, scores, variances = [], [], []
    for lengths in product(LENGTHS, repeat=places.shape[1]):
        smooth = Candidate(1.0, lengths, 0.0).kernel(places[used], places[used])
        for misfit, group in product(MISFIT_RATIOS, GROUP_RATIOS if told else (0.0,)):
            covariance = (misfit**2 * smooth + group**2 * member) * unscaled + np.eye(len(used))
            root = np.linalg.cholesky(covariance)
            white = np.linalg.solve(root, np.column_stack([target, span]))
            basis, triangle = np.linalg.qr(white[:, 1:])
            left = white[:, 0] - basis @ (basis.T @ white[:, 0])
            square = float(left @ left) + len(used) * LEAST_CHANCE**2
            logarithms = np.log(np.diag(root)).sum() + np.log(np.abs(np.diag(triangle))).sum()
            candidates.append(Candidate(misfit, lengths, group))
            prior = -np.log(misfit)  # as likely at any scale, so that few runs tell of little
            scores.append(prior - logarithms - freedom / 2 * np.log(square))
            variances.append(square / freedom)
    probability = np.exp(np.array(scores) - max(scores))
    return Deviations(
        places,
        groups,
        scale,
        tuple(candidates),
        probability / probability.sum(),
        np.array(variances),
        freedom,
        told,
    )


def deviation(residuals: Array, parameters: int) -> float:
    """Standard deviation of n residuals that P fitted parameters have left, from their median
    absolute deviation, so that outliers do not count."""
    freedom = max(len(residuals) - parameters, 1)
    middle = np.median(np.abs(residuals - np.median(residuals)))
    return float(MAD_TO_DEVIATION * middle * np.sqrt(len(residuals) / freedom))


def outliers(residuals: Array, parameters: int) -> NDArray[np.bool_]:
    """(n,) which residuals are beyond 4 normalised median absolute deviations; none of so few that
    the law passes through half of them."""
    if len(residuals) - parameters < LEAST_FREEDOM_FOR_MAD:
        return np.zeros(len(residuals), dtype=bool)
    return np.abs(residuals - np.median(residuals)) > max(
        OUTLYING * deviation(residuals, parameters), OUTLYING * EXACT
    )


def _groups_told(span: Array, groups: NDArray[np.intp]) -> bool:
    """Whether the law leaves enough of what groups share for it to be told from chance."""
    labels, members = np.unique(groups, return_inverse=True)
    if len(labels) in (1, len(groups)):
        return False
    member = np.eye(len(labels))[members]  # (u, G)
    within = member.T @ member - (member.T @ span) @ (span.T @ member)
    trace = float(np.trace(within))
    freedom = len(groups) - span.shape[1]
    return (
        trace >= LEFT_LEAST * len(groups)
        and float((within**2).sum()) / trace - trace / max(freedom, 1) > EXACT
    )


def _cells(places: Array) -> tuple[Array, NDArray[np.intp]]:
    """Centres (M, F) of places (n, F), and the centre (n,) of each."""
    step = EXACT
    while True:
        _, first, cell = np.unique(
            np.round(places / step), axis=0, return_index=True, return_inverse=True
        )
        if len(first) <= MOST_PLACES:
            return places[first], cell.reshape(-1)
        step = max(2 * step, FIRST_STEP)


def _jittered(kernel: Array) -> Array:
    return kernel + JITTER * np.eye(len(kernel))
