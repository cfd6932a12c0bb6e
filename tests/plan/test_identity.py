"""Ids are made of what a thing is, and of nothing else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.plan.identity import ID_LENGTH, canonical, fingerprint

plain = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), plain))
def test_key_order_is_no_identity(payload):
    assert canonical(payload) == canonical(dict(reversed(payload.items())))


@given(st.dictionaries(st.text(), plain), st.text())
def test_none_is_not_there(payload, key):
    without = {name: value for name, value in payload.items() if name != key}
    assert fingerprint("x", without | {key: None}) == fingerprint("x", without)


@given(plain, plain)
def test_different_values_have_different_spellings(one, other):
    if canonical(one) == canonical(other):
        assert one == other


def test_kinds_tell_apart():
    assert fingerprint("stage", {"a": 1}) != fingerprint("work", {"a": 1})
    assert len(fingerprint("stage", {})) == ID_LENGTH


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match=r"payload\.lr"):
        canonical({"lr": value})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", {1: "key"}])
def test_what_has_no_stable_form_is_refused(value):
    with pytest.raises(TypeError):
        canonical({"it": value})
