"""Nested mappings, such as a config or the record of a log line."""

from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Return {names joined by `separator`: value} of nested mappings, in their order."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            parts = flatten(value, separator).items()
            flat |= {f"{name}{separator}{rest}": part for rest, part in parts}
        else:
            flat[name] = value
    return flat
