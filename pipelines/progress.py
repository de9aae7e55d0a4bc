"""Progress of long work: done, rate, time left and counts, in a terminal and in job logs.
One line that renews itself on a terminal; elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time

FIRST_ETA_AFTER = 10  # units: the first ones are slow, as they compile, connect and fill caches


class Progress:
    """Counts units of work and prints about it at most once per `every_s` seconds.

    Args:
        total: None where it is not known before the end.
    """

    def __init__(
        self, label: str, total: int | None, unit: str, every_s: float, done: int = 0
    ) -> None:
        self._label, self._total, self._unit, self._every_s = label, total, unit, every_s
        self._first, self._done = done, done
        self._started = self._printed = time.monotonic()
        self._values: dict[str, float | str] = {}

    def update(self, n: int, **values: float | str) -> None:
        """Add `n` finished units; `values` (a loss, a count per reject reason, anything that is
        already text) replace the last."""
        self._done += n
        self._values |= values
        now = time.monotonic()
        if now - self._printed >= self._every_s or self._is_finished:
            self._printed = now
            self._print(now)

    @property
    def _is_finished(self) -> bool:
        return self._total is not None and self._done >= self._total

    def _print(self, now: float) -> None:
        seconds = max(now - self._started, 1e-9)
        rate = (self._done - self._first) / seconds
        told = self._done - self._first >= FIRST_ETA_AFTER
        of = share = end = ""
        if self._total is not None:
            left = (self._total - self._done) / rate if told else float("inf")
            of, share = f"/{self._total:,}", f"{100 * self._done / max(1, self._total):.0f}%"
            end = f"in {_duration(seconds)}" if self._is_finished else f"ETA {_duration(left)}"
        parts = [
            f"{self._label} {self._done:,}{of} {self._unit}",
            share,
            f"{rate:,.1f} {self._unit}/s",
            end,
            *(
                f"{name} {value if isinstance(value, str) else format(value, ',.4g')}"
                for name, value in self._values.items()
            ),
        ]
        on_terminal = sys.stdout.isatty()
        last = self._is_finished
        line_end = "\n"
        if on_terminal:
            line_end = "\x1b[K\n" if last else "\x1b[K\r"  # what a longer line left is wiped away
        print(" ".join(filter(None, parts)), end=line_end, flush=True)


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
