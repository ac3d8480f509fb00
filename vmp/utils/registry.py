"""A registry of plain-argument callables, and the way from a config section to their arguments."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry:
    """Functions and classes by name; iterating gives (name, entry) in the order of registration.

    Args:
        kind: what the entries are, for error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str = "") -> Callable[[Entry], Entry]:
        """Return a decorator that registers what it decorates, under `name` or its own.

        Raises:
            ValueError: the name is taken.
        """

        def add(entry: Entry) -> Entry:
            key = name or entry.__name__
            if key in self._entries:
                raise ValueError(
                    f"there is a {self.kind} called {key!r} already; take another name"
                )
            self._entries[key] = entry
            return entry

        return add

    def get(self, name: str) -> Any:
        """Return the entry called `name`.

        Raises:
            ValueError: nothing is registered under that name; the message lists what is.
        """
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            raise ValueError(f"{name!r} is not registered; there are: {known}")
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._entries.items())


def section_kwargs(section: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a config section into keyword arguments: the keys in lower case.

    A section is the signature of what it configures; `tests/test_architecture.py` compares the two.
    """
    return {key.lower(): value for key, value in section.items()}
