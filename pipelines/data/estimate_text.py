"""Says in words and tables what `estimate` predicts, and what it cannot know.
Last step of an estimate."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from pipelines.data.config import DataConfig
from pipelines.data.prediction import Duration, Estimate, Range
from pipelines.data.stats_rows import bytes_text

WIDTH = 100


def describe(result: Estimate, config: DataConfig) -> str:
    """The whole prediction as lines of text."""
    return "\n".join(
        [*_sample(result), "", *_outcomes(result), "", *_costs(result), "", *_limits(config)]
    )


def _sample(result: Estimate) -> list[str]:
    lines = [
        f"probed {result.sampled_rows:,} rows of about {_rows(result.rows)} in "
        f"{result.probe_s:.0f} s; intervals are 95%",
    ]
    if len(result.sources) > 1:
        width = max(len(source.name) for source in result.sources)
        lines += [
            f"  {source.name:{width}}  {source.sampled:>6,} of {_rows(source.rows):>10}  kept "
            f"{_percent(source.kept_share)}"
            for source in result.sources
        ]
    return lines


def _outcomes(result: Estimate) -> list[str]:
    width = max(len(one.outcome) for one in result.outcomes)
    head = f"{'outcome':{width}}  {'sampled':>7}  {'share':>6}  {'interval':>14}"
    lines = [f"{head}  {'rows':>8}  interval"]
    for one in result.outcomes:
        share = one.share
        between = f"{100 * share.low:.1f} to {100 * share.high:.1f}%"
        lines.append(
            f"{one.outcome:{width}}  {one.sampled:>7,}  {100 * share.value:>5.1f}%  {between:>14}  "
            f"{_rows(one.rows.value):>8}  {_rows(one.rows.low)} to {_rows(one.rows.high)}"
        )
    return lines


def _costs(result: Estimate) -> list[str]:
    waiting, task_rows = 100 * result.waiting_share, result.rows_per_s_of_a_task
    cores = task_rows / result.rows_per_cpu_s
    lines = [
        f"stored          {_range(result.stored_bytes, bytes_text)}",
        f"downloaded      {_range(result.downloaded_bytes, bytes_text)}",
        f"CPU-hours       {_range(result.cpu_hours, _number)}",
        f"per CPU second  {_number(result.rows_per_cpu_s)} rows, of which "
        f"{_number(result.kept_per_cpu_s)} are kept",
        f"a chunk alone   {_number(task_rows)} rows/s on {_number(cores)}"
        f" cores; it waits for images {waiting:.0f}% of its time, and decodes, filters and writes "
        f"{100 - waiting:.0f}%",
        "",
        f"{'cores':>5}  {'chunks at once':>14}  {'hours':>8}  {'interval':>18}  {'bound by':>8}  "
        f"{'download':>11}" + ("  cost" if result.durations[0].dollars else ""),
    ]
    return lines + [_duration(duration) for duration in result.durations]


def _duration(duration: Duration) -> str:
    hours = duration.hours
    between = f"{_number(hours.low)} to {_number(hours.high)}"
    cost = duration.dollars
    paid = f"  ${cost.value:,.2f} (${cost.low:,.2f} to ${cost.high:,.2f})" if cost else ""
    return (
        f"{duration.cores:>5,}  {duration.tasks:>14,}  {_number(hours.value):>8}  {between:>18}  "
        f"{duration.bound_by:>8}  {bytes_text(duration.download_bytes_per_s):>9}/s{paid}"
    )


def _limits(config: DataConfig) -> list[str]:
    """What the numbers leave out."""
    lines = [
        "hours are the larger of two: CPU-hours over cores, and this machine's pace of one chunk "
        "over the chunks at once. Both leave out starting workers, reading the lists and "
        "comparing for duplicates.",
        "duplicates across the whole set (duplicate_url, duplicate_image, near_duplicate) are not "
        "seen in a sample: kept rows and stored bytes are before them.",
        "intervals take rows as drawn one by one. Rows come in runs from some places of each list "
        "(compressed lists, JSON arrays and folders: from their start), and neighbours share "
        "hosts: true intervals are wider.",
        "the download was measured from this machine's network, and by one task: many at once may "
        "meet the limits of a line, of name servers, or of hosts that answer 429.",
    ]
    if config.filters.similarity is not None:
        lines.append("filters.similarity was not asked: it needs the cluster's actors.")
    return [
        textwrap.fill(line, WIDTH, initial_indent="- ", subsequent_indent="  ") for line in lines
    ]


def _range(value: Range, text: Callable[[float], str]) -> str:
    return f"{text(value.value)} ({text(value.low)} to {text(value.high)})"


def _percent(share: Range) -> str:
    return f"{100 * share.value:.1f}% ({100 * share.low:.1f} to {100 * share.high:.1f}%)"


def _rows(count: float) -> str:
    """`26.9M`, `1,200`: three digits from a million on, all below."""
    for factor, unit in ((1e9, "G"), (1e6, "M")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:,.0f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
