"""The errors that a user can cause or must act on.

RaysweepError
├── BadInput            the sweep file, an option or an argument; exit code 2
│   └── SourceMissing   a set, a model or a word list that is neither here nor to be fetched
├── BadData             a malformed row of a data file: file, row, reason; exit code 2
├── StoreError          the store holds something else than it should, or cannot be written
│   └── NewerSchema     a record that a later raysweep wrote
└── TrialFailed         a trial cannot be done: too few examples, out of memory, a stage that failed
"""

from __future__ import annotations

__all__ = ["BadData", "BadInput", "NewerSchema", "RaysweepError", "SourceMissing", "StoreError", "TrialFailed"]


class RaysweepError(Exception):
    """Every error that raysweep raises on purpose; its text says what was found, where, and what to do."""


class BadInput(RaysweepError):
    """What the user wrote cannot be used. Nothing was started and nothing was lost."""


class SourceMissing(BadInput):
    """A source could not be found: the text names it, what was tried, and how to get it."""


class BadData(RaysweepError):
    """A data file holds a row that cannot be used: the text gives file, row and reason."""


class StoreError(RaysweepError):
    """The store disagrees with itself or with what was asked of it."""


class NewerSchema(StoreError):
    """A record of a schema that this raysweep does not read. It is left as it is."""


class TrialFailed(RaysweepError):
    """A trial cannot be done as it is described; trying again would fail again."""
