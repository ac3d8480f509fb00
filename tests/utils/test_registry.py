"""A registry finds what was registered, says what there is, and refuses a name twice."""

import pytest

from vmp.utils.registry import Registry


@pytest.fixture
def registry():
    made = Registry("colour")

    @made.register()
    def red():
        return "#f00"

    @made.register("blue")
    class Azure:
        pass

    made.entries = {"red": red, "blue": Azure}  # for the tests to compare with
    return made


def test_entries_are_found_by_their_own_name_or_the_one_given(registry):
    assert {name: registry.get(name) for name in ("red", "blue")} == registry.entries
    assert registry.get("red")() == "#f00"
    assert "red" in registry
    assert "azure" not in registry


def test_iterating_gives_names_and_entries_in_their_order(registry):
    assert list(registry) == list(registry.entries.items())


def test_an_unknown_name_is_told_what_there_is(registry):
    with pytest.raises(ValueError, match="^'green' is not registered; there are: blue, red$"):
        registry.get("green")


def test_a_name_is_not_given_twice(registry):
    with pytest.raises(ValueError, match="there is a colour called 'red' already"):
        registry.register("red")(print)
    assert registry.get("red") is registry.entries["red"]
