"""The familiarity prompt: eight seeded shots of the same set, never the example that is asked."""

from __future__ import annotations

import pytest

from raysweep.data.examples import candidates
from raysweep.data.sources import find
from raysweep.errors import BadInput, TrialFailed
from raysweep.trial.familiarity import few_shot


@pytest.fixture
def webqa(tmp_path):
    def write(count):
        lines = [f'{{"qId": "{n}", "qText": "who is {n}?", "answers": ["{n}"]}}' for n in range(count)]
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        return candidates(find("webqa", data_dir=tmp_path), data_seed=0)

    return write


def test_every_example_is_asked_with_eight_others(webqa):
    found = webqa(20)
    prompt = few_shot("webqa", found, data_seed=0)
    for asked in found:
        shots = prompt.shots(asked)
        assert len(shots) == len({shot.id for shot in shots}) == 8
        assert asked.id not in {shot.id for shot in shots}


def test_shots_are_seeded(webqa):
    one, again, other = (few_shot("webqa", webqa(50), data_seed=seed) for seed in (0, 0, 1))
    assert one == again != other


def test_shots_are_bare_questions(data_dir):
    found = candidates(find("popqa", data_dir=data_dir), data_seed=0)
    asked = next(iter(found))
    assert all(shot.prompt.endswith("?") for shot in few_shot("popqa", found, data_seed=0).shots(asked))


def test_a_set_that_is_too_small_or_random_cannot_be_asked(webqa):
    with pytest.raises(TrialFailed, match="webqa: 8 examples are too few for a prompt of 8 shots"):
        few_shot("webqa", webqa(8), data_seed=0)
    with pytest.raises(BadInput, match="kvr: no model is familiar with it"):
        few_shot("kvr", (), data_seed=0)
