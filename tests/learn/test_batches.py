"""A step's examples are dealt out whole, whatever the ranks and sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.data.encoding import Encoded
from raysweep.learn.batches import deal, partition

lengths = st.lists(st.integers(2, 60), min_size=1, max_size=40)


def examples_of(sizes):
    """Examples whose tokens say whose they are, the last half of each trained on."""
    return [
        Encoded(str(index), np.full(size, index + 1, dtype=np.int32), np.arange(size) >= max(1, size // 2))
        for index, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("packed", [False, True])
@given(
    sizes=lengths,
    ranks=st.integers(1, 4),
    most=st.none() | st.integers(1, 9),
    most_tokens=st.integers(1, 300),
    overhead=st.integers(0, 200),
)
def test_every_target_is_dealt_once_and_ranks_keep_step(packed, sizes, ranks, most, most_tokens, overhead):
    examples = examples_of(sizes)
    dealt = [
        deal(examples, rank=rank, ranks=ranks, most=most, most_tokens=most_tokens, overhead=overhead, packed=packed)
        for rank in range(ranks)
    ]
    assert len({len(parts) for parts in dealt}) == 1
    labels = np.concatenate([part.labels_N for parts in dealt for part in parts])
    wanted = np.concatenate([example.tokens[example.targets] for example in examples])
    assert sorted(labels) == sorted(wanted)
    for part in (part for parts in dealt for part in parts):
        assert (part.tokens_BL.reshape(-1)[part.source_N] == part.labels_N).all()  # a source is of the same example
        rows, width = part.tokens_BL.shape
        if packed:
            assert rows == 1
            assert (part.tokens_BL > 0).all()
            assert (part.positions_BL == 0).sum() <= (most or 40)
        else:
            assert most is None or rows <= most
            assert rows == 1 or rows * width <= most_tokens


@given(sizes=lengths, overhead=st.integers(0, 100))
def test_no_other_cut_in_two_is_cheaper(sizes, overhead):
    falling = sorted(sizes, reverse=True)

    def cost(groups):
        ends = np.cumsum(groups)
        return sum(group * falling[end - group] + overhead for group, end in zip(groups, ends, strict=True))

    best = partition(falling, most=None, most_tokens=10**9, overhead=overhead)
    assert sum(best) == len(falling)
    others = [[cut, len(falling) - cut] for cut in range(1, len(falling))] + [[len(falling)]]
    assert cost(best) <= min(map(cost, others))
