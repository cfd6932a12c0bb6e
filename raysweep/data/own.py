"""Sets of one's own: a few lines of YAML give the place of the rows, the prompt's template, and the target's field."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping

from raysweep.data.draft import Draft
from raysweep.data.rows import Row
from raysweep.errors import BadInput
from raysweep.sweep.catalog import question_part
from raysweep.sweep.spec import OwnSet

__all__ = ["drafts_of", "fields_of", "recipe_of"]


def fields_of(name: str, own: OwnSet) -> tuple[str, ...]:
    """The fields that a prompt template names; raises BadInput where it is no template or names none."""
    try:
        parsed = list(string.Formatter().parse(own.prompt))
    except ValueError as error:
        raise BadInput(f"sets.{name}.prompt: {error}; write {{field}} for a field and {{{{ for a brace") from None
    fields = tuple(dict.fromkeys(field for _, field, _, _ in parsed if field is not None))
    if any(spec or conversion for _, _, spec, conversion in parsed):
        raise BadInput(f"sets.{name}.prompt: a field stands alone in its braces, as {{question}}, without : or !")
    if plain := [field for field in fields if not field.isidentifier()]:
        raise BadInput(f"sets.{name}.prompt: {{{plain[0]}}} is not the plain name of a field, such as {{question}}")
    if not fields:
        raise BadInput(f"sets.{name}.prompt: names no field of the rows, such as {{question}}")
    return fields


def recipe_of(own: OwnSet) -> Mapping[str, str | None]:
    """What of its declaration decides what an example says."""
    return {"prompt": own.prompt, "target": own.target, "subject": own.subject}


def drafts_of(name: str, own: OwnSet, rows: Iterator[Row]) -> Iterator[Draft]:
    """A draft a row; a target that is a list gives its first as the gold answer and counts all as right."""
    fields = fields_of(name, own)
    for row in rows:
        several = isinstance(row.values.get(own.target), list | tuple)
        answers = row.texts(own.target) if several else [row.text(own.target)]
        if not answers:
            row.refuse(f"column {own.target!r} is empty")
        values = {field: row.text(field) for field in fields}
        prompt = own.prompt.format_map(values)
        subject = row.text(own.subject) if own.subject else None
        asked = question_part(own.prompt).format_map(values)
        yield Draft(({"user": prompt, "assistant": answers[0]},), tuple(dict.fromkeys(answers)), subject, asked)
