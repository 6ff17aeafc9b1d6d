"""What each PooledDatabase on a server may hold, and what stays free.

A server's connections are divided among namespaces first, and then among the PooledDatabases of each. So what
a namespace's owners write there (how many PooledDatabases, their consumers, weights, reserves and names)
divides their own part, and takes nothing from another namespace. Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from poolkeeper.budget.division import SERVER, Consumer, Limit, Party, claim, party


@dataclass(frozen=True)
class Pooled:
    """A PooledDatabase as one of those on a server. `name` is `namespace/name`; `most` is
    spec.budget.maxConnections, None for `auto`; `pods` are the wanted replicas; the consumers are in order of
    precedence."""

    name: str
    weight: int
    most: int | None
    pods: int
    consumers: tuple[Consumer, ...]
    replaceable: bool = False
    """Whether the floor of one pod more than are present is kept free. A pod that has to go keeps all it has to
    its end. If it was the only one, its successor would otherwise have to wait for that."""
    reserve: int = 0
    """spec.budget.reserve: connections of its namespace's part that are to stay free."""
    namespace_weight: int = 100
    """Of its namespace's part, which the platform sets."""

    @property
    def namespace(self) -> str:
        return self.name.rpartition("/")[0]


_OUTWEIGHING = 10**9
"""The weight of a namespace's reserve among its PooledDatabases, whose weights end at 1,000."""


def shares(usable: int, databases: Sequence[Pooled], limits: Iterable[Limit] = ()) -> dict[str, int]:
    """What each PooledDatabase may hold, by name. `limits` are CONNECTION LIMITs of roles and databases that
    they share.

    If not all floors fit, the namespaces whose floors are the smallest get theirs, and the others equal parts;
    in a namespace the first ones come first, and one gets what is left for some of its entries.

    `usable` is what lasts, reserves included: backends that poolers left behind are no reason to shrink, or
    each shrink would cause the next one. (In View.usable they count, so that nothing grows before they have
    ended.)
    """
    given = _handed_out(usable, databases, limits)
    return {item.name: given[item.name] for item in databases}


def reserved(usable: int, databases: Sequence[Pooled], limits: Iterable[Limit] = ()) -> int:
    """How many of the usable connections stay free. Each namespace's reserve, the largest of its
    PooledDatabases, comes out of its own part."""
    given = _handed_out(usable, databases, limits)
    return sum(given[_reserve(namespace)] for namespace in {item.namespace for item in databases})


def bottleneck(pooled: Pooled, given: Mapping[str, int], limits: Iterable[Limit] = ()) -> str:
    """What would have to be larger for a PooledDatabase to get more than the share that shares() has `given`
    it, in the words of a remedy: "raise ..."."""
    share = given[pooled.name]
    if pooled.most is not None and share >= pooled.most:
        return f"spec.budget.maxConnections (now {pooled.most})"
    ceiling = party(pooled.name, pooled.weight, None, pooled.pods, pooled.consumers).ceiling
    if ceiling is not None and share >= ceiling:
        return "limits.maxConnections of the consumers"
    for limit in limits:
        if pooled.name in limit.members and sum(given[name] for name in limit.members) >= limit.connections:
            return "the CONNECTION LIMIT of the upstream's role or database"
    return SERVER


def _handed_out(usable: int, databases: Sequence[Pooled], limits: Iterable[Limit]) -> dict[str, int]:
    """Connections by party: the PooledDatabases, and each namespace's reserve. First each namespace's part is
    found; then, within it, the reserve comes before everything else."""
    weights = {item.namespace: item.namespace_weight for item in databases}
    parties, limits = _parties(databases), tuple(limits)
    drafted = _hand_out(usable, parties, weights, limits)
    given: dict[str, int] = {}
    for namespace, (reserve, *own) in parties.items():
        part = sum(drafted[one.name] for one in (reserve, *own))
        free = min(part, reserve.ceiling or 0)
        theirs = [
            Limit(limit.members, sum(drafted[one.name] for one in own if one.name in limit.members))
            for limit in limits
        ]
        given |= {reserve.name: free} | _hand_out(part - free, {namespace: own}, weights, theirs)
    return given


def _hand_out(
    usable: int, parties: Mapping[str, Sequence[Party]], weights: Mapping[str, int], limits: Sequence[Limit]
) -> dict[str, int]:
    """Connections by party, handed out one at a time to the namespace that is furthest below its part: first
    until all floors are reached, then the rest. `parties` and `weights` are by namespace."""
    held = dict.fromkeys(parties, 0)
    given = {one.name: 0 for several in parties.values() for one in several}
    takes = _stock(usable, given, limits)
    for place in (_until_its_floor, _by_weight):
        lines = {namespace: _line(several, given, place) for namespace, several in parties.items()}
        due = [(claim(held[namespace], weights[namespace]), namespace) for namespace in parties]
        heapq.heapify(due)
        while due:
            _, namespace = heapq.heappop(due)
            line = lines[namespace]
            while line:
                _, index, one = heapq.heappop(line)
                if takes(one.name):
                    given[one.name] += 1
                    held[namespace] += 1
                    _queue(line, index, one, given, place)
                    heapq.heappush(due, (claim(held[namespace], weights[namespace]), namespace))
                    break
    return given


def _parties(databases: Sequence[Pooled]) -> dict[str, list[Party]]:
    """By namespace, its reserve first: nothing outweighs it, and it has no floor."""
    reserves: dict[str, int] = {}
    for item in databases:
        reserves[item.namespace] = max(item.reserve, reserves.get(item.namespace, 0))
    parties = {name: [Party(_reserve(name), _OUTWEIGHING, 0, free)] for name, free in reserves.items()}
    for item in databases:
        parties[item.namespace].append(party(item.name, item.weight, item.most, item.pods, item.consumers))
    return parties


def _reserve(namespace: str) -> str:
    """The party that stands for a namespace's reserve. No PooledDatabase has that name."""
    return f"{namespace}/"


def _stock(usable: int, names: Iterable[str], limits: Sequence[Limit]) -> Callable[[str], bool]:
    """Takes one of the usable connections for a party, by its name; False: none is left that it may have."""
    left = [usable, *(limit.connections for limit in limits)]
    concerned = {
        name: [0, *(number for number, limit in enumerate(limits, 1) if name in limit.members)]
        for name in names
    }

    def takes(name: str) -> bool:
        if any(left[number] <= 0 for number in concerned[name]):
            return False
        for number in concerned[name]:
            left[number] -= 1
        return True

    return takes


_Line = list[tuple[Fraction, int, Party]]
"""A heap of the parties that may have more: the first is next."""
_Place = Callable[[Party, int, int], Fraction | None]
"""A party's place in its namespace's line: from the party, its index there, and what it has. None: it gets no
more."""


def _line(parties: Sequence[Party], given: Mapping[str, int], place: _Place) -> _Line:
    line: _Line = []
    for index, one in enumerate(parties):
        _queue(line, index, one, given, place)
    return line


def _queue(line: _Line, index: int, one: Party, given: Mapping[str, int], place: _Place) -> None:
    at = place(one, index, given[one.name])
    if at is not None:
        heapq.heappush(line, (at, index, one))


def _until_its_floor(one: Party, index: int, has: int) -> Fraction | None:
    return Fraction(index) if has < one.floor else None


def _by_weight(one: Party, _: int, has: int) -> Fraction | None:
    return claim(has, one.weight) if one.may_grow(has) else None
