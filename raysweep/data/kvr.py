"""Random key-value pairs: the paper's synthetic factoids, which no model can know."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

from raysweep.data.draft import Draft

__all__ = ["LENGTH", "RECIPE", "pairs"]

RECIPE = 1  # a number that goes up when the same seed gives other pairs
LENGTH = 8
ALPHABET = string.ascii_letters + string.digits


def pairs(*, data_seed: int) -> Iterator[Draft]:
    """Pairs without end, lazily: key and value are 8 letters and digits, no key comes twice.

    The first n are the same however many are asked for, so D_A takes the first and `id` the next.
    """
    rng = random.Random(f"kvr/{RECIPE}/{data_seed}")
    seen: set[str] = set()
    while True:
        key, value = _word(rng), _word(rng)
        if key not in seen:
            seen.add(key)
            yield Draft(({"key": key, "value": value},), (value,), key)


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(ALPHABET, k=LENGTH))
