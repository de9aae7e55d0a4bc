"""What the model knows of images and of captions, as its encoders return it.
Between the encoders, and losses, scores and heat maps; kept in files, indexed and joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
import torch.export
import torch.nn.functional as F
from torch import Tensor

from caft.errors import DataError

ABSENT = cast(Tensor, None)  # of features that are not there; what needs them calls `require`
LEVELS, LEVEL = "assignments", "assignments."  # the list, and what its tensors are called in files
EMBEDDINGS = ("whole", "fine", "fine_cls", "coarse", "parts")
Index = int | slice | Sequence[int] | Tensor


class _Features:
    """What image and text features have in common: B of them, some kinds of which may be absent.

    `features[3]`, `features[2:5]` and `features[[4, 1]]` are features of those alone, in batches.
    """

    def __len__(self) -> int:
        return next((len(tensor) for tensor in self._tensors().values()), 0)

    def __getitem__(self, index: Index) -> Self:
        place = [index] if isinstance(index, int) else index
        return self._each(lambda tensor: tensor[place])

    @classmethod
    def join(cls, several: Sequence[Self]) -> Self:
        """Features one after the other, of the kinds that all of them have.

        Raises:
            DataError: there are none.
        """
        if not several:
            raise DataError("features: none to join")
        named = [each._tensors() for each in several]
        shared = [name for name in named[0] if all(name in tensors for tensors in named)]
        return cls._of({name: torch.cat([tensors[name] for tensors in named]) for name in shared})

    def normalised(self) -> Self:
        """Every embedding with length 1; label maps and assignments as they are."""
        changed = {
            name: F.normalize(tensor, dim=-1) if name in EMBEDDINGS else tensor
            for name, tensor in self._tensors().items()
        }
        return self._of(changed)

    def to(self, *target: Any) -> Self:
        """As `Tensor.to`, with a device; a dtype applies to what is floating-point."""
        plain = [one for one in target if not isinstance(one, torch.dtype)]
        return self._each(
            lambda tensor: (
                tensor.to(*(target if tensor.is_floating_point() else plain))
                if plain or tensor.is_floating_point()
                else tensor
            )
        )

    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file, without pickles."""
        from safetensors.torch import save_file

        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        save_file(tensors, Path(path), {"features": type(self).__name__})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What `save` wrote.

        Raises:
            DataError: no such file, or one that holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(path), "pt") as file:
                kind = (file.metadata() or {}).get("features")
                if kind != cls.__name__:
                    raise DataError(f"{path}: holds {kind or 'no features'}, not {cls.__name__}")
                names = file.keys()
                return cls._of({name: file.get_tensor(name) for name in names})
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read as features: {error}") from None

    def require(self, *names: str) -> None:
        """Raises DataError where one of these was left out when the features were made."""
        for name in names:
            if getattr(self, name) is None:
                raise DataError(
                    f"{type(self).__name__}: '{name}' was left out of these features, and this "
                    "needs it; encode them again, or keep it"
                )

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor that is there by name; those of a list with their number."""
        found: dict[str, Tensor] = {}
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if isinstance(value, list):
                found |= {f"{one.name}.{n}": level for n, level in enumerate(value)}
            elif value is not None:
                found[one.name] = value
        return found

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return self._of({name: change(tensor) for name, tensor in self._tensors().items()})

    @classmethod
    def _of(cls, tensors: dict[str, Tensor]) -> Self:
        """The inverse of `_tensors`."""
        values: dict[str, Any] = {n: t for n, t in tensors.items() if not n.startswith(LEVEL)}
        levels = sorted(
            (n for n in tensors if n.startswith(LEVEL)), key=lambda n: int(n.removeprefix(LEVEL))
        )
        return cls(**values, **({LEVELS: [tensors[name] for name in levels]} if levels else {}))


@dataclass
class ImageFeatures(_Features):
    """What the model knows of B images; embeddings are projected and not L2-normalised.

    A model without part losses has coarse embeddings alone, one without a whole loss fine ones
    alone; they then stand for the others too. A flat encoder's segments are its patches. Those
    that a use does not need may be left out: the score reads `whole` and `fine`.
    """

    whole: Tensor = ABSENT  # (B, D): coarse cls
    fine: Tensor = ABSENT  # (B, M, D): fine segments
    fine_cls: Tensor = ABSENT  # (B, D)
    coarse: Tensor = ABSENT  # (B, M3, D): coarse segments
    # Per level, soft: (B, S, M1), (B, M1, M2), (B, M2, M3); flat: none.
    assignments: list[Tensor] = field(default_factory=list)
    superpixels: Tensor = ABSENT  # (B, H, W) label map


@dataclass
class TextFeatures(_Features):
    """What the model knows of B captions; embeddings are projected and not L2-normalised.

    Without part losses the whole caption is the only part; without a whole loss the mean of the
    chunks is the whole.
    """

    parts: Tensor = ABSENT  # (B, K, D): sub-captions; the first `chunks` of them make the whole
    whole: Tensor = ABSENT  # (B, D)


# So that graphs which return features can be exported.
for _features in (ImageFeatures, TextFeatures):
    torch.export.register_dataclass(_features)
FeaturesT = TypeVar("FeaturesT", ImageFeatures, TextFeatures)
