"""One line for every failure: what failed, where, and what to do; its last frame goes to the log.
Workers and stages pass exceptions through here, whichever of Ray's wrappers they come in."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from pathlib import Path
from typing import Any

from caft import errors
from caft.errors import CAFTError, ClusterError, UnexpectedError

PROJECT = Path(__file__).resolve().parents[1]
MOST_CHARACTERS = 300
WHAT_TO_DO = "run the same command again; if it fails there again, report this line with the log"

LOST = "see the workers' logs, and run the same command again"


@contextmanager
def located(place: str) -> Iterator[None]:
    """Name the file, row or key that the block works on, for an exception that it raises."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, CAFTError):  # which names its place
            error.add_note(place)
        raise


class one_voice(ContextDecorator):
    """Everything that the block raises becomes a CAFTError; also a decorator.

    Raises:
        CAFTError: as it was raised, here or in a task whose result was asked for.
        ClusterError: the process of a task was lost.
        UnexpectedError: anything else, with its type, first words and place.
    """

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            known = understood(error, self._place)
            if known is not error:
                raise known from None  # Ray's wrappers hold whole tracebacks


def understood(error: BaseException, place: str = "") -> CAFTError:
    """What a user is told of any exception; `place` names the work that raised it."""
    cause = root_cause(error)
    if isinstance(cause, CAFTError):
        if cause is error:
            return cause
        return _known_class(cause)((str(cause).splitlines() or [""])[0])  # Ray adds advice below
    parts = [place, *reversed(getattr(cause, "__notes__", [])), first_words(cause)]
    words = ": ".join(part for part in parts if part)
    if is_lost(cause):
        return ClusterError(f"{words}; {LOST}")
    _log_last_frame(cause)
    return UnexpectedError(f"{words}; {WHAT_TO_DO}")


def shortened(error: CAFTError) -> str:
    """Its message without the advice, for work that is tried again by itself."""
    return str(error).removesuffix(f"; {WHAT_TO_DO}").removesuffix(f"; {LOST}")


def root_cause(error: BaseException) -> BaseException:
    """The exception that was raised in a task, without what Ray wraps around it."""
    for name in ("cause", "controller_failure"):
        inner = getattr(error, name, None)
        if _is_rays(error) and isinstance(inner, BaseException) and inner is not error:
            return root_cause(inner)
    if failures := getattr(error, "worker_failures", None):
        return root_cause(_first_fault(failures))
    cause = error.__cause__
    # Ray Data raises an error of Ray's "from" an empty one that marks it as no fault of ours.
    if _is_rays(error) and cause is not None and type(cause).__name__ != "SystemException":
        return root_cause(cause)
    return error


def is_lost(error: BaseException) -> bool:
    """Whether a process, a node or an object of the cluster went away."""
    from ray.exceptions import RayError, RayTaskError

    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


def first_words(error: BaseException) -> str:
    """`ValueError: the first line of its message`."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])[:MOST_CHARACTERS]


def attempt(function: Callable[[], Any], place: str) -> dict[str, Any]:
    """The function's value or its failure, as JSON: Ray would print an exception's traceback."""
    try:
        return {"value": function()}
    except Exception as error:
        known = understood(error, place)
        return {"error": [_known_class(known).__name__, str(known)]}


def value_of(result: dict[str, Any]) -> Any:
    """The value of an `attempt`; raises its failure."""
    if "error" in result:
        kind, message = result["error"]
        raise getattr(errors, kind)(message)
    return result["value"]


def _known_class(error: CAFTError) -> type[CAFTError]:
    """The nearest class of caft.errors, which takes one text and every process can import."""
    known = (kind for kind in type(error).__mro__ if vars(errors).get(kind.__name__) is kind)
    return next(known, CAFTError)


def _is_rays(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] == "ray" for kind in type(error).__mro__)


def _first_fault(failures: dict[int, BaseException]) -> BaseException:
    """Of several workers' failures the one that ended the others, which lose their connection."""
    causes = [root_cause(failure) for _, failure in sorted(failures.items())]
    own = [cause for cause in causes if isinstance(cause, CAFTError)]
    other = [cause for cause in causes if not _is_connection(cause)]
    return [*own, *other, *causes][0]


def _is_connection(error: BaseException) -> bool:
    words = str(error).lower()
    return is_lost(error) or any(name in words for name in ("gloo", "nccl", "closed by peer"))


def _log_last_frame(error: BaseException) -> None:
    """To stderr: where it was raised, and the last line of this project that led there."""
    frames = traceback.extract_tb(error.__traceback__)
    shown = frames[-1:]
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PROJECT)]
    ours = [frame for frame in ours if "site-packages" not in frame.filename]
    if ours and ours[-1] is not frames[-1]:
        shown = [ours[-1], *shown]
    for frame in shown:
        print(
            f'{type(error).__name__}: File "{frame.filename}", line {frame.lineno}, in '
            f"{frame.name}",
            file=sys.stderr,
            flush=True,
        )
