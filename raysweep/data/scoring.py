"""Scoring rules: a prediction and the golds to a score between 0 and 1. Texts only, so a re-score needs no model.

A rule carries a version: a change of meaning bumps it, and numbers say which one they come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

__all__ = ["SCORERS", "Scorer"]

# A minus after a digit, a letter or a closing bracket is a dash (`10-12`), and a point after one is the end of a sentence.
NUMBER = re.compile(r"(?:(?<![\w%.)\]])-)?(?:\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)")
WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Scorer:
    """`score(prediction, golds)` in [0, 1]; `may_match(prefix, golds)` is False once nothing that begins with `prefix`
    can score above 0, so that generating on would change no verdict (None: something always can, a later number or word).
    `max_new_tokens` bounds an answer's length."""

    name: str
    version: int
    max_new_tokens: int
    score: Callable[[str, Sequence[str]], float]
    may_match: Callable[[str, Sequence[str]], bool] | None


def _normal(text: str) -> str:
    return text.strip().lower()


def _exact(prediction: str, golds: Sequence[str]) -> float:
    """The paper's rule: equal after strip and lower-case."""
    return float(any(_normal(prediction) == _normal(gold) for gold in golds))


def _exact_may_match(prefix: str, golds: Sequence[str]) -> bool:
    begun, whole = _folded(prefix.lstrip()), _folded(prefix.strip())
    wanted = [_folded(gold.strip()) for gold in golds]
    return any(gold.startswith(begun) or gold == whole for gold in wanted)


def _contains(prediction: str, golds: Sequence[str]) -> float:
    """The released code's rule for webqa, less its reading of an empty prediction as right."""
    said = _normal(prediction)
    return float(bool(said) and any(said in _normal(gold) for gold in golds))


def _contains_or_empty(prediction: str, golds: Sequence[str]) -> float:
    """The released code's rule for webqa as it is: nothing is contained in everything."""
    return float(any(_normal(prediction) in _normal(gold) for gold in golds))


def _contains_may_match(prefix: str, golds: Sequence[str]) -> bool:
    begun = _folded(prefix.strip())
    return any(begun in _folded(gold.strip()) for gold in golds)


def _folded(text: str) -> str:
    """Lower-case that does not depend on what follows: a final sigma is one only until the next letter comes."""
    return text.lower().replace("ς", "σ")


def _numeric(prediction: str, golds: Sequence[str]) -> float:
    """The last number of the prediction is the last number of a gold, as numbers: `1,234.0` is `1234`."""
    said = _last_number(prediction)
    return float(said is not None and any(said == _last_number(gold) for gold in golds))


def _last_number(text: str) -> Decimal | None:
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _rouge_l(prediction: str, golds: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words (lower-case letters and digits, no stemming)."""
    said = WORD.findall(prediction.lower())
    return max((_f_measure(said, WORD.findall(gold.lower())) for gold in golds), default=0.0)


def _f_measure(said: Sequence[str], gold: Sequence[str]) -> float:
    common = _common_length(said, gold)
    return 2 * common / (len(said) + len(gold)) if common else 0.0


def _common_length(left: Sequence[str], right: Sequence[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for index, other in enumerate(right, start=1):
            diagonal, row[index] = row[index], diagonal + 1 if word == other else max(row[index], row[index - 1])
    return row[-1]


SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {
        scorer.name: scorer
        for scorer in (
            Scorer("exact", 1, 1000, _exact, _exact_may_match),
            Scorer("contains", 1, 1000, _contains, _contains_may_match),
            Scorer("contains_or_empty", 1, 1000, _contains_or_empty, _contains_may_match),
            Scorer("numeric", 2, 512, _numeric, None),
            Scorer("rouge_l", 1, 1000, _rouge_l, None),
        )
    }
)
