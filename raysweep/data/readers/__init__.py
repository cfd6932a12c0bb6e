"""Readers: how the rows of each set's upstream files become drafts of examples."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from raysweep.data.readers.lama import LAMA
from raysweep.data.readers.questions import ENTITYQA, MQUAKE, POPQA, TRIVIAQA, WEBQA
from raysweep.data.readers.shape import RowShape
from raysweep.data.readers.tasks import APPS, EVOLCODE, GSM8K, MATH, ULTRACHAT

__all__ = ["SHAPES", "RowShape"]

SHAPES: Mapping[str, tuple[RowShape, ...]] = MappingProxyType(
    {
        "popqa": POPQA,
        "triviaqa": TRIVIAQA,
        "lama": LAMA,
        "entityqa": ENTITYQA,
        "webqa": WEBQA,
        "mquake": MQUAKE,
        "gsm8k": GSM8K,
        "math": MATH,
        "evolcode": EVOLCODE,
        "apps": APPS,
        "ultrachat": ULTRACHAT,
    }
)
