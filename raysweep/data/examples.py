"""From a source to examples: templates filled in, duplicates merged, a seeded order, and the first that are wanted.

Order and cleaning depend on what the rows say and never on where they stand, so that a folder and the hub give the same
examples and the same digest. Rows that ask the same (white space and case aside) are one example: its target is the
answer that most of them give, the first in alphabetical order among equals, and all their answers count as right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

from raysweep.data import kvr
from raysweep.data.draft import Draft, Skipped
from raysweep.data.example import Example
from raysweep.data.own import drafts_of
from raysweep.data.readers import SHAPES, RowShape
from raysweep.data.rows import Row
from raysweep.data.sources import Source
from raysweep.errors import TrialFailed
from raysweep.plan.identity import canonical, digest
from raysweep.sweep.catalog import DATASETS, question_part
from raysweep.sweep.stage import Selection

__all__ = ["Candidates", "Selected", "candidates", "digest_of", "named", "take", "take_up_to"]

ID_DIGITS = 12
BATCH = 64  # how many are asked at once at least, when familiarity selects


@dataclass(frozen=True, slots=True)
class Candidates:
    """Cleaned examples in seeded order, and how many rows cleaning merged or left out (`duplicates`, `conflicting`, …).

    Iterating again starts again from the first.
    """

    name: str
    start: Callable[[], Iterator[Example]]
    counts: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Example]:
        return self.start()


@dataclass(frozen=True, slots=True)
class Selected:
    """Examples, how they were found, and the digest of what they say."""

    examples: tuple[Example, ...]
    counts: dict[str, int]
    digest: str


def candidates(
    source: Source,
    *,
    data_seed: int,
    marks: Literal["marked"] | None = None,
    unanswered: Literal["kept"] | None = None,
) -> Candidates:
    """All examples of a source in the order that `data_seed` gives; generated sets are made one by one.

    With `marks` prompts are marked as in the released code, and with `unanswered` dialogues keep a user's last word, as
    there. Raises BadData where a row cannot be used.
    """
    if "generated" in source.identity:
        return Candidates(source.name, lambda: _generated(source.name, data_seed))
    counts: Counter[str] = Counter()
    read = _read(source, counts, marks)
    examples = _cleaned((one if unanswered else replace(one, unanswered=None) for one in read), counts)
    examples.sort(key=lambda example: digest(f"{data_seed}\n{question_key(example)}".encode()))
    return Candidates(source.name, lambda: iter(examples), dict(counts))


def take(
    found: Iterable[Example],
    selection: Selection,
    *,
    fits: Callable[[Example], bool],
    unfamiliar: Callable[[list[Example]], list[bool]] | None,
) -> Selected:
    """The first `examples` candidates that fit and have the familiarity that is asked for, after `skip` such ones.

    `unfamiliar` says of each example whether the model does not know it; it is asked in batches, only until enough are
    found. Counts: `asked`, `too_long`, `familiar`, `unfamiliar` beside those of cleaning. Raises TrialFailed where
    there are too few, and says how many.
    """
    accepted, counts = _accepted(found, selection, fits, unfamiliar)
    wanted = selection.skip + selection.examples
    if len(accepted) < wanted:
        raise TrialFailed(_too_few(selection, len(accepted), counts))
    chosen = tuple(accepted[selection.skip : wanted])
    return Selected(chosen, dict(counts), digest_of(chosen))


def take_up_to(
    found: Iterable[Example],
    selection: Selection,
    *,
    fits: Callable[[Example], bool],
    unfamiliar: Callable[[list[Example]], list[bool]] | None = None,
) -> Selected:
    """As `take`, and fewer where there are not so many."""
    accepted, counts = _accepted(found, selection, fits, unfamiliar)
    chosen = tuple(accepted[selection.skip : selection.skip + selection.examples])
    return Selected(chosen, dict(counts), digest_of(chosen))


def digest_of(examples: Sequence[Example]) -> str:
    """The digest of what examples say, in their order."""
    return digest(canonical([_said(example) for example in examples]).encode())


def _said(example: Example) -> tuple[tuple[str, ...], ...]:
    return example.turns if example.unanswered is None else (*example.turns, (example.unanswered,))


def question_key(example: Example) -> str:
    """What makes two examples the same question: all the user's words, white space and case aside."""
    return "\n".join(" ".join(user.casefold().split()) for user, _ in example.turns)


def _generated(name: str, data_seed: int) -> Iterator[Example]:
    return (_example(name, draft) for draft in kvr.pairs(data_seed=data_seed))


def _read(source: Source, counts: Counter[str], marks: Literal["marked"] | None) -> Iterator[Example]:
    if source.own is not None:
        for draft in drafts_of(source.name, source.own, source.rows()):
            turns = tuple((turn["user"], turn["assistant"]) for turn in draft.turns)
            yield named(source.name, turns, draft.answers, draft.subject, draft.asked)
        return
    hub = DATASETS[source.name].hub
    for shape, row in islice(_shaped_rows(source), hub.rows if hub else None):
        for draft in shape.read(row, source.side):
            match draft:
                case Skipped(why):
                    counts[why] += 1
                case Draft():
                    yield _example(source.name, draft, marks)


def _shaped_rows(source: Source) -> Iterator[tuple[RowShape, Row]]:
    for file in source.located():
        shape = next(shape for shape in SHAPES[source.name] if shape.name == file.shape)
        for row in file.rows():
            yield shape, row


def _example(name: str, draft: Draft, marks: Literal["marked"] | None = None) -> Example:
    dataset = DATASETS[name]
    prompt = dataset.marked if marks and dataset.marked else dataset.prompt
    turns = tuple((prompt.format_map(turn), dataset.target.format_map(turn)) for turn in draft.turns)
    asked = question_part(dataset.prompt).format_map(draft.turns[0])
    made = named(name, turns, draft.answers, draft.subject, asked)
    return made if draft.unanswered is None else replace(made, unanswered=draft.unanswered)


def named(
    name: str,
    turns: tuple[tuple[str, str], ...],
    answers: tuple[str, ...],
    subject: str | None,
    asked: str | None = None,
) -> Example:
    """An example whose id is its set and the digest of what it says."""
    content = digest(canonical(turns).encode())[:ID_DIGITS]
    return Example(f"{name}-{content}", turns, answers, subject, asked if subject is None else None)


def _cleaned(examples: Iterable[Example], counts: Counter[str]) -> list[Example]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(question_key(example), []).append(example)
    return [group[0] if len(group) == 1 else _merged(group, counts) for group in groups.values()]


def _merged(group: list[Example], counts: Counter[str]) -> Example:
    said = Counter(example.target.strip().casefold() for example in group)
    counts["duplicates"] += len(group) - 1
    counts["conflicting"] += len(said) > 1
    chosen = min(group, key=lambda example: (-said[example.target.strip().casefold()], example.target, example.turns))
    others = sorted({answer for example in group for answer in example.answers} - set(chosen.answers[:1]))
    return replace(chosen, answers=(*chosen.answers[:1], *others))


def _fitting(found: Iterable[Example], fits: Callable[[Example], bool], counts: Counter[str]) -> Iterator[Example]:
    for example in found:
        if fits(example):
            yield example
        else:
            counts["too_long"] += 1


def _accepted(
    found: Iterable[Example],
    selection: Selection,
    fits: Callable[[Example], bool],
    unfamiliar: Callable[[list[Example]], list[bool]] | None,
) -> tuple[list[Example], Counter[str]]:
    """Candidates that fit and have the familiarity asked for: as many as are wanted, or all there are."""
    counts = Counter(dict(getattr(found, "counts", {})))
    wanted = selection.skip + selection.examples
    accepted: list[Example] = []
    fitting = _fitting(found, fits, counts)
    while len(accepted) < wanted and (batch := _next_batch(fitting, selection, wanted - len(accepted))):
        accepted += _of_familiarity(batch, selection, unfamiliar, counts)
    return accepted, counts


def _next_batch(fitting: Iterator[Example], selection: Selection, missing: int) -> list[Example]:
    size = missing if selection.familiarity == "all" else max(BATCH, missing)
    return [example for _, example in zip(range(size), fitting, strict=False)]


def _of_familiarity(
    batch: list[Example],
    selection: Selection,
    unfamiliar: Callable[[list[Example]], list[bool]] | None,
    counts: Counter[str],
) -> list[Example]:
    if selection.familiarity == "all":
        return batch
    if unfamiliar is None:
        raise TypeError(f"{selection.set}: selecting by familiarity needs a model to ask")
    answers = unfamiliar(batch)
    counts["asked"] += len(batch)
    counts["unfamiliar"] += sum(answers)
    counts["familiar"] += len(batch) - sum(answers)
    wanted = selection.familiarity == "unfamiliar"
    return [example for example, is_new in zip(batch, answers, strict=True) if is_new == wanted]


def _too_few(selection: Selection, there: int, counts: Counter[str]) -> str:
    left = there - selection.skip
    kind = "" if selection.familiarity == "all" else f"{selection.familiarity} "
    after = f" after the {selection.skip} that D_A has" if selection.skip else ""
    told = ", ".join(f"{key} {counts[key]}" for key in sorted(counts))
    return (
        f"{selection.set}: {selection.examples} {kind}examples are asked for and there are {max(left, 0)}{after}"
        f"{f' ({told})' if told else ''}; set examples to at most that, or give more data"
    )
