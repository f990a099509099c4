"""Cycles in a directed graph, given as a function from a node to its successors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

__all__ = ["cycle_through", "strong_components"]

_Node = TypeVar("_Node", bound=Hashable)


def strong_components(nodes: Iterable[_Node], following: Callable[[_Node], Iterable[_Node]]) -> Iterator[list[_Node]]:
    """Tarjan's algorithm: groups of nodes that can all reach each other. A node on no cycle is a group of its own.

    The time is linear in nodes and edges. There is no recursion: a cycle may be longer than Python's stack.
    """
    order: dict[_Node, int] = {}  # the number of a node in the order of discovery
    low: dict[_Node, int] = {}  # the lowest number that is known to be reachable from a node
    open_nodes: dict[_Node, None] = {}  # discovered and not yet in a group, in the order of discovery
    for root in nodes:
        if root in order:
            continue
        order[root] = low[root] = len(order)
        open_nodes[root] = None
        path = [(root, iter(following(root)))]
        while path:
            node, rest = path[-1]
            for other in rest:
                if other not in order:
                    order[other] = low[other] = len(order)
                    open_nodes[other] = None
                    path.append((other, iter(following(other))))
                    break
                if other in open_nodes:
                    low[node] = min(low[node], order[other])
            else:
                path.pop()
                if path:
                    before = path[-1][0]
                    low[before] = min(low[before], low[node])
                if low[node] == order[node]:
                    group = [open_nodes.popitem()[0]]
                    while group[-1] != node:
                        group.append(open_nodes.popitem()[0])
                    yield group


def cycle_through(
    start: _Node, following: Callable[[_Node], Iterable[_Node]], within: frozenset[_Node]
) -> tuple[_Node, ...]:
    """A shortest cycle from `start` back to it, only through nodes of `within`; empty if there is none."""
    came_from: dict[_Node, _Node] = {}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for other in following(node):
            if other == start:
                cycle = [node]
                while cycle[-1] != start:
                    cycle.append(came_from[cycle[-1]])
                return tuple(reversed(cycle))
            if other in within and other not in came_from:
                came_from[other] = node
                waiting.append(other)
    return ()
