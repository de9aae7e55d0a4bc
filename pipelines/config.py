"""What every stage's configuration and command line share.
A stage is `python -m pipelines.<stage> [config.yaml] [key=value ...] [--print-config]`."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import Field, model_validator

from caft.config import Config, to_yaml
from caft.errors import UnexpectedError
from caft.secrets import holds_secret, masked
from pipelines import user_paths
from pipelines.failures import understood
from pipelines.ownership import owned
from pipelines.recipes import load_recipe
from pipelines.tracking_config import TrackingConfig

StageT = TypeVar("StageT", bound="StageConfig")


class StageConfig(Config):
    """Base of the stages' schemas."""

    # Key that the first word of a command line sets where it is no configuration, or None.
    first_word: ClassVar[str | None] = None

    tracking: TrackingConfig = TrackingConfig()
    progress_every_s: float = Field(10.0, gt=0, description="seconds between progress lines")

    @model_validator(mode="after")
    def _without_passwords(self: StageT) -> StageT:
        """A configuration is printed, logged and stored with every output."""
        for key, text in _texts(self.model_dump(mode="json")):
            if holds_secret(text):
                raise ValueError(
                    f"{key}: holds a password or signature, which would be stored with the output; "
                    "leave it out of the address and set it in the environment, such as "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PGPASSWORD or "
                    "AWS_SECRET_ACCESS_KEY"
                )
        return self


def stage_main(
    schema: type[StageT],
    run: Callable[[StageT], None],
    argv: list[str] | None = None,
    check_data: Callable[[StageT], int] | None = None,
) -> int:
    """Parse a stage's command line, then run it. Returns the process's exit code.

    A stage with `check_data` also takes `--check-data`, which calls that for the exit code instead.

    A failure is printed as one line on stderr and gives `command`'s exit code.
    """
    package = schema.__module__.rsplit(".", 1)[0]
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=schema.__doc__)
    parser.add_argument("config", nargs="?", help="YAML file, or the name of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override single keys")
    parser.add_argument("--print-config", action="store_true", help="print the result and stop")
    parser.add_argument("--wait", action="store_true", help="until no other run has the output")
    if check_data:
        parser.add_argument(
            "--check-data", action="store_true", help="say what data is missing and stop"
        )
    args = parser.parse_args(argv)
    path, overrides = args.config, args.overrides
    if path is not None and re.match(r"[\w.]+=", path):
        path, overrides = None, [path, *overrides]

    def call() -> int:
        config = load_recipe(schema, path, overrides)
        if args.print_config:
            print(to_yaml(config), end="")
        elif check_data and args.check_data:
            return check_data(config)
        else:
            from pipelines.runs import check_tracking  # MLflow, which --print-config does not need

            config = config.model_copy(update={"tracking": check_tracking(config.tracking)})
            output = user_paths.usable_path(config.model_dump()["output"], "output", folder=True)
            with owned(output, package.rpartition(".")[2], args.wait):
                run(config)
        return 0

    return command(call)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested sections and lists, by its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(item, f"{key}.{name}" if key else str(name))


def command(call: Callable[[], int]) -> int:
    """The exit code of `call`: 2 of a CAFTError, 1 of any other exception, 130 of Ctrl-C, 143 of
    SIGTERM, each after one line on stderr."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)
    try:
        return call()
    except Exception as error:
        known = understood(error)
        print(f"{type(known).__name__}: {masked(str(known))}", file=sys.stderr, flush=True)
        return 1 if isinstance(known, UnexpectedError) else 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        return 130
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        print("ended by SIGTERM; run the same command again to go on", file=sys.stderr, flush=True)
        return 128 + signal.SIGTERM


def _leave(number: int, _frame: Any) -> NoReturn:
    """What Ray does too in a driver's process, once it runs."""
    sys.exit(number)
