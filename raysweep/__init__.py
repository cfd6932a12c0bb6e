"""raysweep: Ray-distributed sweeps for continual memorization in language models.

import raysweep
raysweep.load("experiments/quickstart.yaml").run()
frame = raysweep.trials("quickstart")  # one row a trial
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "compare",
    "curves",
    "evals",
    "export",
    "figure",
    "load",
    "matrix",
    "page",
    "power",
    "predictions",
    "primary",
    "rescore",
    "rescored_evals",
    "sign_agreement",
    "table",
    "transfer",
    "trials",
]

_RESULTS = ("compare", "figure", "matrix", "page", "power", "primary", "sign_agreement", "table", "transfer")


def __getattr__(name: str) -> Any:
    """Public functions are imported on first use, so that the core loads without them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _RESULTS:
        from raysweep import results

        return getattr(results, name)
    from raysweep import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
