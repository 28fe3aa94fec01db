"""Ids come from strangers."""

import pytest

from routereplay.wire import check_id, is_valid_id, normalize_id
from routereplay.wire.errors import InvalidIdentifier


@pytest.mark.parametrize(
    "text",
    ["chatcmpl-123", "a", "0", "a.b_c:d@e=f+g~h-i", "x" * 200],
)
def test_ordinary_ids_are_kept(text):
    assert normalize_id(text) == check_id(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "{tag}", "a/b", "../x", "a b", "-a", "a*", "a\n", "é", "x" * 201, "a%2F", "\ud800"],
)
def test_anything_else_becomes_a_digest_and_is_refused_as_a_key(text):
    assert not is_valid_id(text)
    assert normalize_id(text).startswith("h.")
    with pytest.raises(InvalidIdentifier, match="expected 1 to 200 characters"):
        check_id(text, "trajectory_id")


def test_different_texts_get_different_keys():
    assert normalize_id("a/b") != normalize_id("a/c")
