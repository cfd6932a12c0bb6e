"""Reader of LAMA's T-REx part: facts as cloze sentences.

The prompt is the relation's template with the subject in. Where the object ends the sentence the prompt ends before it
("Dante was born in"); elsewhere its place is marked ("Miles plays ___ music."), which the paper does not fix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from raysweep.data.draft import Draft
from raysweep.data.readers.shape import RowShape, Side
from raysweep.data.rows import Row

__all__ = ["GAP", "LAMA", "TEMPLATES", "cloze", "relation_in"]

GAP = "___"


def cloze(template: str, subject: str) -> str:
    """`[X] was born in [Y] .` and `Dante` → `Dante was born in`."""
    sentence = template.replace("[Y]", GAP).replace("[X]", subject)
    ended = re.fullmatch(rf"(.*\S)\s+{GAP}\s*\.?\s*", sentence)
    return ended[1] if ended else re.sub(r"\s+([.,?])", r"\1", sentence).strip()


def relation_in(file: str) -> str | None:
    """The relation that a file's name gives: `trex_lms_vocab/P19.jsonl` → `P19`."""
    found = re.match(r"P\d+", PurePosixPath(file).name)
    return found[0] if found else None


def _triple(row: Row, side: Side) -> Iterator[Draft]:
    subject, gold = row.text("sub_label"), row.text("obj_label")
    prompt = cloze(_template(row, side), subject)
    yield Draft(({"cloze": prompt, "answer": gold},), (gold,), subject)


def _template(row: Row, side: Side) -> str:
    if row.values.get("template"):
        template = row.text("template")
    else:
        relation = row.text("predicate_id") if "predicate_id" in row.values else relation_in(row.file)
        if relation is None:
            row.refuse("no column 'predicate_id', and the file's name does not say the relation either (P19.jsonl)")
        template = side.get(relation) or row.refuse(
            f"relation {relation} has no template; put LAMA's relations.jsonl beside it"
        )
    if "[X]" not in template or "[Y]" not in template:
        row.refuse(f"template {template!r} lacks [X] or [Y]")
    return template


TEMPLATES = RowShape(
    name="LAMA, templates",
    columns=frozenset({"relation", "template"}),
    without=frozenset({"sub_label"}),
    read=lambda row, side: iter(()),
)
LAMA = (
    RowShape(name="LAMA, T-REx", columns=frozenset({"sub_label", "obj_label", "predicate_id"}), read=_triple),
    RowShape(
        name="LAMA, T-REx triples",
        columns=frozenset({"sub_label", "obj_label", "uuid"}),
        read=_triple,
        without=frozenset({"predicate_id", "pred", "masked_sentences"}),  # Google-RE has these two, and is not T-REx
    ),
)
