"""Looks through the pickles of a `.pt` file before PyTorch reads them: no code of theirs is run.
PyTorch refuses code; what is refused here would exhaust memory or end the process."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import IO

from caft.errors import CheckpointError

MAX_TUPLE_DEPTH = 64  # Python's hash of a tuple follows it down without end, and then crashes
MAX_OPCODES = 5_000_000  # a released file with its optimiser state has some 100,000
MAX_PICKLE_BYTES = 256 * 2**20
OLD_FORMAT_PICKLES = 5  # magic number, version, system, content, keys; then raw storages
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def check_pickles(path: Path) -> None:
    """Look through a file as `torch.save` writes it, in either of its formats.

    Raises:
        CheckpointError: no such file, or its pickles nest or repeat beyond all use.
    """
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
            return
        with open(path, "rb") as stream:
            for _ in range(OLD_FORMAT_PICKLES):
                _check_pickle(stream, path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle may fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch file of weights: {reason}"
        ) from None


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(
                    f"{path}: '{member.filename[:100]}' in it is compressed, which torch.save "
                    "never does; save the weights with torch.save"
                )
            if member.filename.endswith(".pkl"):
                if member.file_size > MAX_PICKLE_BYTES:
                    raise CheckpointError(f"{path}: a pickle of {member.file_size:,} bytes in it")
                _check_pickle(io.BytesIO(archive.read(member)), path)


def _check_pickle(stream: IO[bytes], path: Path) -> None:
    """Follow one pickle's opcodes with the depth of tuples in the place of values."""
    stack: list[int | None] = []  # None: a mark
    memo: dict[int, int] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MAX_OPCODES:
            raise CheckpointError(f"{path}: a pickle of more than {MAX_OPCODES:,} steps in it")
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            at = len(memo) if name == "MEMOIZE" else int(str(argument))
            memo[at] = stack[-1] or 0
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(None)
        else:
            taken = _taken(opcode, stack)
            if name == "TUPLE" or name in TUPLES:
                depth = 1 + max((d or 0 for d in taken), default=0)
                if depth > MAX_TUPLE_DEPTH:
                    raise CheckpointError(
                        f"{path}: refused, tuples in it are nested more than {MAX_TUPLE_DEPTH} deep"
                    )
                stack.append(depth)
            else:
                stack.extend(0 for _ in opcode.stack_after)


def _taken(opcode: pickletools.OpcodeInfo, stack: list[int | None]) -> list[int | None]:
    """What an opcode takes off the stack: so many values, or all above the last mark with it."""
    before, taken = opcode.stack_before, list[int | None]()
    if pickletools.markobject in before:
        while (value := stack.pop()) is not None:
            taken.append(value)
        below = before.index(pickletools.markobject)
    else:
        below = len(before)
    for _ in range(below):
        taken.append(stack.pop())
    return taken
