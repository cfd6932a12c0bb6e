"""The README's table of the released code's departures is the profile, switch by switch."""

from __future__ import annotations

import re
from pathlib import Path

from raysweep.sweep.spec import PROFILES

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_table_of_departures_is_the_profile():
    section = README.split("### Where the released code departs from the paper")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `([a-z]+\.[a-z_]+): ([a-z0-9_]+)` \|", section, re.MULTILINE))
    released = PROFILES["released"]
    assert told == {f"{part}.{key}": value for part, settings in released.items() for key, value in settings.items()}
