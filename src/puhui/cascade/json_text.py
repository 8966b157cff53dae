"""JSON inside an answer: the values of an object or a list, and where each of them stands in the text.

Big models put prose, code fences and white space of their own around and into their JSON. Whoever compares two
answers needs the values alone; whoever writes answers in the same form needs all that stands between them.
"""

from __future__ import annotations

from json import JSONDecoder
from typing import Any, NamedTuple


class Leaf(NamedTuple):
    """A value that is no object: its path, the value, and its place text[start:end].

    A path is a JSON Pointer (RFC 6901) without its first slash: `city` or `address/city`.
    """

    path: str
    value: Any
    start: int
    end: int


def read_leaves(text: str) -> list[Leaf] | None:
    """All values of the object that begins at the first brace, in order; None where there is none, or a bad one.

    Objects within it are opened, lists are values. A key that occurs twice is bad. So is NaN, which is no JSON.

    >>> [(leaf.path, leaf.value) for leaf in read_leaves('Sure: {"a": 1, "b": {"c": ["x"]}}') or ()]
    [('a', 1), ('b/c', ['x'])]
    """
    start = text.find("{")
    if start < 0:
        return None
    leaves: list[Leaf] = []
    try:
        _open(text, start, "", leaves)
    except (ValueError, IndexError, RecursionError):
        return None
    return leaves if len({leaf.path for leaf in leaves}) == len(leaves) else None


def read_list(text: str) -> list[tuple[int, int]] | None:
    """Where each value of the list that is the whole text begins and ends; None where it is no list.

    >>> read_list('["a", 12]')
    [(1, 4), (6, 8)]
    """
    places: list[tuple[int, int]] = []
    try:
        at = _past_space(text, 0, "[")
        while text[at] != "]":
            _, end = _DECODER.raw_decode(text, at)
            places.append((at, end))
            at = _past_space(text, end)
            if text[at] == ",":
                at = _past_space(text, at + 1)
                if text[at] == "]":  # a comma and nothing after it
                    return None
            elif text[at] != "]":
                return None
    except (ValueError, IndexError, RecursionError):
        return None
    return places if at + 1 == len(text) else None


def _open(text: str, at: int, above: str, leaves: list[Leaf]) -> int:
    """Adds the leaves of the object that begins at `at`; returns its end."""
    at = _past_space(text, at + 1)
    if text[at] == "}":
        leaves.append(Leaf(above, {}, at - 1, at + 1))
        return at + 1
    while True:
        if text[at] != '"':
            raise ValueError(f"a key is missing at character {at}")
        key, at = _DECODER.raw_decode(text, at)
        at = _past_space(text, _past_space(text, at), ":")
        path = above + key.replace("~", "~0").replace("/", "~1")
        if text[at] == "{":
            at = _open(text, at, f"{path}/", leaves)
        else:
            value, end = _DECODER.raw_decode(text, at)
            leaves.append(Leaf(path, value, at, end))
            at = end
        at = _past_space(text, at)
        if text[at] == "}":
            return at + 1
        at = _past_space(text, at, ",")


def _past_space(text: str, at: int, expected: str = "") -> int:
    """The first place that is no white space, after `expected` where that is given."""
    if not text.startswith(expected, at):
        raise ValueError(f"{expected!r} is missing at character {at}")
    at += len(expected)
    while text[at] in " \t\n\r":
        at += 1
    return at


def _not_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = JSONDecoder(parse_constant=_not_json)
