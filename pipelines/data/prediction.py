"""What an estimate predicts: rows, sizes and times, each with its 95% interval.
Made by estimate.py, put into words by estimate_text.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, known: float) -> Range:
        return Range(self.value + known, self.low + known, self.high + known)

    def or_larger(self, other: Range) -> Range:
        pairs = zip(
            (self.value, self.low, self.high), (other.value, other.low, other.high), strict=True
        )
        return Range(*(max(pair) for pair in pairs))


@dataclass(frozen=True)
class Outcome:
    """How many rows of the sample, and of the whole, end in one way."""

    outcome: str
    sampled: int
    share: Range
    rows: Range


@dataclass(frozen=True)
class Duration:
    """Time on so many cores: the larger of two bounds.

    Attributes:
        tasks: chunks in work at a time.
        cpu_bound_hours: if no core ever waits.
        task_bound_hours: if every task goes at the pace of the one that was measured.
    """

    cores: int
    tasks: int
    cpu_bound_hours: Range
    task_bound_hours: Range
    hours: Range
    bound_by: str
    download_bytes_per_s: float
    dollars: Range | None


@dataclass(frozen=True)
class SourceEstimate:
    """One source of the sample and of the whole."""

    name: str
    rows: float
    sampled: int
    kept_share: Range


@dataclass(frozen=True)
class Estimate:
    """All that is predicted."""

    sampled_rows: int
    rows: float
    sources: list[SourceEstimate]
    outcomes: list[Outcome]
    stored_bytes: Range
    downloaded_bytes: Range
    cpu_hours: Range
    kept_per_cpu_s: float
    rows_per_cpu_s: float
    rows_per_s_of_a_task: float
    waiting_share: float
    durations: list[Duration]
    probe_s: float
