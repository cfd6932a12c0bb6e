"""What would stop a sweep on this machine: one finding a question, each with what to do where it is not well.

Nothing heavy is imported to find out, and nothing is left behind; torch is asked only where a GPU's driver is there.
"""

from __future__ import annotations

from raysweep.doctor import installed, machine, reach
from raysweep.doctor.finding import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine"]


def examine(*, store: str, data: str | None, address: str | None) -> list[Finding]:
    """All findings: what is installed, what the machine has, and whether store, Ray and data can be reached.

    `address` is the Ray that a sweep would use; with None it starts one here.
    """
    return [*installed.look(), *machine.look(store), *reach.look(store, data=data, address=address)]
