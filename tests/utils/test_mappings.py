"""Nested mappings as flat ones."""

from vmp.utils.mappings import flatten


def test_names_are_joined_and_the_order_kept():
    nested = {"b": {"x": 1, "y": {"z": "text"}}, "a": None, "empty": {}}
    flat = flatten(nested, ".")
    assert flat == {"b.x": 1, "b.y.z": "text", "a": None}
    assert list(flat) == ["b.x", "b.y.z", "a"]
