"""Reads weights from PyTorch's files, whose pickles are looked through first: no code is run.
PyTorch refuses code; what is refused here would exhaust memory or end the process."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from caft.errors import CheckpointError
from caft.state_dicts import NESTS, plain_weights

RELEASED_SUFFIXES = (".pt", ".pth", ".bin")
MAX_TUPLE_DEPTH = 64  # Python's hash of a tuple follows it down without end, and then crashes
MAX_OPCODES = 5_000_000  # a released file with its optimiser state has some 100,000
MAX_PICKLE_BYTES = 256 * 2**20
OLD_FORMAT_PICKLES = 5  # magic number, version, system, content, keys; then raw storages
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_released(path: Path) -> dict[str, Tensor]:
    """The weights in a released file, without running any code in it, under its own keys but for
    the prefixes of wrappers; see `caft.state_dicts.plain_weights`.

    Raises:
        CheckpointError: the file is damaged, holds no weights, or needs more than tensors and
            plain values to be read.
    """
    check_pickles(path)
    try:
        # Mapped into memory, so that optimiser state is not even read; old formats cannot be.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle may fail in any way
        raise CheckpointError(f"{path}: {_reason(error)}") from None
    try:
        weights = plain_weights(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    for key, value in weights.items():
        if value.layout != torch.strided or value.is_meta:
            continue  # named when it is met
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: '{key}' has a shape larger than what is stored of it")
    if not weights:
        nests = ", ".join(f"'{nest}'" for nest in NESTS)
        raise CheckpointError(f"{path}: holds no weights, neither at its top nor in {nests}")
    return weights


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


def _reason(error: Exception) -> str:
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"refused, as reading it would call {match[1]}; "
            f"if you trust the file, save its state dict alone and load that"
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    first_line = first_line.removeprefix("Weights only load failed. ").partition("In PyTorch 2.6")[
        0
    ]
    if not first_line:  # PyTorch's advice is to run what the file holds
        first_line = "it holds more than tensors and plain values, or is damaged"
    return f"cannot be read as a PyTorch file of weights: {first_line}"
