"""Expression trees: the symbols in them, and values put in their places. See parser.py for the kinds of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Node = tuple[Any, ...]
DOTS: Node = ("sym", "...")
"""An item of a list: 1, 3, ..., 99."""


def symbols(node: Node, names: set[str] | None = None) -> set[str]:
    """Return the names of the symbols of an expression."""
    names = set() if names is None else names
    if node and node[0] == "sym":
        names.add(node[1])
    else:
        for part in node[1:]:
            if isinstance(part, tuple):
                if part and isinstance(part[0], str):
                    symbols(part, names)
                else:
                    for child in part:
                        if isinstance(child, tuple):
                            symbols(child if child and isinstance(child[0], str) else ("list", child), names)
    return names


def put(node: Node, name: str, value: Node) -> Node:
    """Return the expression with a value in the place of a symbol."""
    return put_all(node, {name: value})


def put_all(node: Node, values: Mapping[str, Node]) -> Node:
    """Return the expression with values in the place of symbols."""
    if node and node[0] == "sym":
        return values.get(node[1], node)
    return tuple(put_all(part, values) if isinstance(part, tuple) else part for part in node)


def mentions(node: Node, wanted: Node) -> bool:
    """Return whether ``wanted`` is a part of the expression."""
    return node == wanted or any(mentions(part, wanted) for part in node if isinstance(part, tuple))


def mentions_kind(node: Node, kind: str) -> bool:
    """Return whether a node of this kind is a part of the expression."""
    return bool(node) and (node[0] == kind or any(mentions_kind(p, kind) for p in node if isinstance(p, tuple)))
