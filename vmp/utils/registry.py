"""A registry of plain-argument callables, and the way from a config section to their arguments."""

from collections.abc import Mapping
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "pick", "section_kwargs"]


def pick(registry: Registry, name: str) -> Any:
    """Return the entry of `registry` called `name`.

    Raises:
        ValueError: nothing is registered under that name; the message lists what is.
    """
    if name not in registry:
        known = ", ".join(sorted(key for key, _ in registry))
        raise ValueError(f"{name!r} is not registered; there are: {known}")
    return registry.get(name)


def section_kwargs(section: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a config section into keyword arguments: the keys in lower case.

    A section is the signature of what it configures; `tests/test_architecture.py` compares the two.
    """
    return {key.lower(): value for key, value in section.items()}
