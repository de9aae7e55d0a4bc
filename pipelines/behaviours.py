"""What the code does where no configuration key decides it, with a number for each such behaviour.
Stages store the numbers with what they make, and continue nothing that was begun under others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

BEFORE = 1  # of a behaviour that stored numbers do not name: older than its first change


class Behaviour(NamedTuple):
    number: int  # raised by one whenever results change though no key does
    what: str


BEHAVIOURS = {
    # 2: extras are drawn independently; without a long caption, eight sentences take its place.
    "caption_sampling": Behaviour(2, "how sub-captions are drawn from the captions of a row"),
    # 2: image cls token, the pools' group biases, the attention pool's q, k and v.
    "initial_values": Behaviour(2, "the random values that a new model starts with"),
    # 2: P@0.5 counts an IoU of exactly 0.5; a median between two ranks is their mean.
    "measures": Behaviour(2, "how the evaluate stage makes metrics of ranks and overlaps"),
    # 2: by a hash of step, image and place, on the device.
    "negatives": Behaviour(2, "which sub-captions of other images are an image's negatives"),
    # 2: texts are cleaned and damaged ones rejected, equal URLs of one source merge their captions.
    "captions": Behaviour(2, "what the data stage makes of the cells and rows of its sources"),
    # 2: complete pictures with odd bytes are kept, near duplicates are confirmed by a look.
    # 3: the look is 224 bytes of profiles, and JPEG files are hashed from more pixels.
    "pictures": Behaviour(3, "which pictures the data stage keeps, and how it compares them"),
}


def numbers(names: Iterable[str]) -> dict[str, int]:
    """The numbers of today, to be stored with an output that these behaviours decide."""
    return {name: BEHAVIOURS[name].number for name in names}


def first_change(stored: Mapping[str, int], names: Iterable[str]) -> str | None:
    """Which of the behaviours differs from the stored numbers, in words; None: all are the same."""
    for name in names:
        then, now = stored.get(name, BEFORE), BEHAVIOURS[name]
        if then != now.number:
            return f"{name} ({now.what}) is {then} there and {now.number} in this version"
    return None
