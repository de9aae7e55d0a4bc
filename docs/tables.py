"""Tables of the documentation that are made from the code when the site is built.
A page names one as `<!-- table: NAME -->`; `python docs/tables.py NAME` prints it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from caft.config import ModelConfig
from pipelines.data.config import DataConfig
from pipelines.data.reasons import REASONS
from pipelines.embed.config import EmbedConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.sets import SETS
from pipelines.evaluate.sets.base import Counts
from pipelines.prometheus import GAUGES, PREFIX
from pipelines.sweep.config import SweepConfig
from pipelines.train.config import TrainConfig
from pipelines.train.telemetry import METRICS

MARKER = re.compile(r"<!-- table: ([\w ]+) -->")
PLAIN = {int: "whole number", float: "number", str: "text", bool: "true, false", NoneType: "null"}
Rows = Iterable[tuple[str, ...]]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' hook: a page's text with its tables filled in; an unknown name stops the build."""
    return MARKER.sub(lambda found: TABLES[found[1]](), markdown)


def table(head: tuple[str, ...], rows: Rows) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    escaped = (" | ".join(cell.replace("|", r"\|") for cell in line) for line in lines)
    return "\n".join(f"| {line} |" for line in escaped)


def reasons() -> str:
    rows = (
        (f"`{name}`", reason.stage, reason.text, "yes" if reason.transient else "")
        for name, reason in REASONS.items()
    )
    return table(("reason", "at", "meaning", "worth a retry"), rows)


def benchmark_sets() -> str:
    rows = (
        (
            f"`{name}`",
            known.files,
            ", ".join(f"`{folder}/`" if folder else "`root`" for folder in known.images),
            ", ".join(f"`{split}` {_counted(counts)}" for split, counts in known.splits.items()),
        )
        for name, known in SETS.items()
    )
    return table(
        ("`set`", "files in `root`", "image folders", "`split`, the first by default"), rows
    )


def training_metrics() -> str:
    return table(("metric", "meaning"), ((f"`{name}`", text) for name, text in METRICS.items()))


def cluster_metrics() -> str:
    rows = (
        (f"`{PREFIX}{name}`", ", ".join(f"`{label}`" for label in gauge.labels), gauge.text)
        for name, gauge in GAUGES.items()
    )
    return table(("metric", "labels", "meaning"), rows)


def keys(schema: type[BaseModel]) -> str:
    """Every key of a configuration, those of its sections by their whole names."""
    return table(("key", "values", "default", "meaning"), _keys(schema, ""))


def _keys(schema: type[BaseModel], prefix: str) -> Iterator[tuple[str, ...]]:
    for name, field in schema.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = [one for one in dict.fromkeys(_schemas(field.annotation)) if one is not ModelConfig]
        if not inner:
            text = field.description or ""
            yield f"`{key}`", _values(field.annotation), _default(field), text
        if get_origin(field.annotation) is tuple:
            key += "[]"
        for one in inner:  # of several the ones that may stand there
            about = " ".join((one.__doc__ or "").split())
            yield f"**`{key}`**", "", _default(field), f"**{about}**"
            yield from _keys(one, f"{key}.")


def _schemas(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a key may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not dict:
        for argument in get_args(annotation):
            yield from _schemas(argument)


def _values(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return ", ".join(dict.fromkeys(map(_values, arguments)))
    if origin is tuple:
        listed = ", ".join(dict.fromkeys(_values(one) for one in arguments if one is not ...))
        return f"list of: {listed}"
    if origin is dict:
        return f"by name: {_values(arguments[1])}"
    if origin is not None:  # Annotated
        return _values(arguments[0])
    if annotation is ModelConfig:
        return "keys of a model"
    return PLAIN.get(annotation, "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value is PydanticUndefined or isinstance(value, BaseModel) or value in ("", ()):
        return ""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _counted(counts: Counts) -> str:
    told = [
        f"{number:,} {what}"
        for number, what in ((counts.images, "images"), (counts.texts, "texts"))
        if number is not None
    ]
    return f"({', '.join(told)})" if told else ""


TABLES: dict[str, Callable[[], str]] = {
    "reasons": reasons,
    "benchmark sets": benchmark_sets,
    "training metrics": training_metrics,
    "cluster metrics": cluster_metrics,
    "keys of data": lambda: keys(DataConfig),
    "keys of train": lambda: keys(TrainConfig),
    "keys of evaluate": lambda: keys(EvaluateConfig),
    "keys of embed": lambda: keys(EmbedConfig),
    "keys of sweep": lambda: keys(SweepConfig),
    "keys of a model": lambda: keys(ModelConfig),
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in TABLES]
    if unknown or not names:
        print(f"give the name of a table: {', '.join(TABLES)}", file=sys.stderr)
        return 2
    print("\n\n".join(TABLES[name]() for name in names))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
