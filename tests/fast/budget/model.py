"""A model of everything that touches the budget: operators, the ReplicaSet, kubelets, PgBouncers, PostgreSQL.

A State is one value; events() lists what can happen next, and happen() does it. Nothing here is random, so that
the same machine serves an exhaustive search and a random walk.

PgBouncer is as bad as it can be: each entry holds as many connections as its cap lets it, whether or not
clients are led to the pod, and what it holds above a lowered cap stays until some event gives it back.
Connections
that are closed stay on the server, until some event ends them. The operator sees nothing but
what it looked at, one thing at a time: its pods, its readings and its measurement are as old as it happens. And
an operator that was replaced may not have noticed, and goes on for a while with what it knew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field, replace

from poolkeeper.budget import protocol
from poolkeeper.budget.division import Consumer
from poolkeeper.budget.protocol import Pooler, Reading, Steps, View
from poolkeeper.budget.shares import Pooled, shares
from poolkeeper.budget.targets import target, targets
from poolkeeper.desired.deployment import scale
from tests.fast.budget.rollouts import turn
from tests.fast.budget.states import (
    DYING,
    ENDED,
    LIVE,
    Files,
    Measured,
    Pod,
    Shown,
    State,
    Written,
    admitted,
    bounds,
    changed,
    counted,
    ended,
    given_back,
    holding,
    record,
    reloaded,
    shown,
    stored,
    with_record,
)

Event = tuple[str, Callable[[State], State]]


@dataclass(frozen=True)
class World:
    """How large the model is, and what may go on in it."""

    server: int
    """Connections for poolers and others."""
    specs: tuple[tuple[Pooled, ...], ...]
    """What the users ask for; they go from each to the next."""
    pods: int
    """So many are made at most in all."""
    epochs: int = 1
    foreign: tuple[int, ...] = (0,)
    """Others' connections: they go from each number to the next."""
    writes: int = 1
    """So often an operator writes after it was replaced."""
    preconditions: bool = True
    """The API server keeps the precondition of a write: nobody writes who doesn't know what is stored."""
    careful_pods: bool = True
    """A pod without an allotment has no entries; else it has one cap of its own."""
    overdrawn: list[State] = field(init=False, default_factory=list, compare=False, repr=False)
    """Where the operator was ready to raise the bounds above what it had measured."""
    _planned: dict[object, Steps] = field(init=False, default_factory=dict, compare=False, repr=False)
    _verdicts: dict[State, list[str]] = field(init=False, default_factory=dict, compare=False, repr=False)
    _rollouts: dict[State, str] = field(init=False, default_factory=dict, compare=False, repr=False)
    _outcomes: dict[State, State] = field(init=False, default_factory=dict, compare=False, repr=False)

    # What the operator makes of what it knows

    def view(self, state: State) -> View:
        poolers = tuple(
            Pooler(
                uid=str(number),
                database=pod.database,
                admitted=pod.admitted,
                terminating=pod.heard == DYING,
                reading=None if pod.reading is None else self._reading(state, pod.database, pod.reading),
            )
            for number, pod in enumerate(state.pods)
            if pod.heard in (LIVE, DYING)
        )
        records = {name: record(written) for name, written in state.records}
        found = state.measured
        return View(
            epoch=state.epoch,
            usable=found.usable if found else None,
            ended=frozenset(map(str, found.ended if found else ())),
            counted=frozenset(map(str, found.read if found else ())),
            records=records,
            poolers=poolers,
            wanted=targets(found.lasting, self.specs[state.spec], poolers, records) if found else {},
        )

    def steps(self, state: State) -> Steps:
        heard = tuple((pod.database, pod.admitted, pod.heard, pod.reading) for pod in state.pods)
        known = (state.records, state.rules, heard, state.epoch, state.measured, state.spec)
        if known not in self._planned:
            view = self.view(state)
            made = self._planned[known] = protocol.step(view)
            before, after = bounds(view.records), bounds({**view.records, **made.records})
            if after > max(before, -1 if view.usable is None else view.usable):
                self.overdrawn.append(state)
        return self._planned[known]

    # What can happen

    def events(self, state: State) -> Iterator[Event]:
        yield from self.environment(state)
        yield from self.operator(state)
        if state.epoch < self.epochs - 1:
            yield "the operator is replaced", self._replaced

    def environment(self, state: State) -> Iterator[Event]:
        for number, pod in enumerate(state.pods):
            if pod.phase == LIVE and self._mountable(state, number) != pod.mounted:
                yield (
                    f"pod {number} gets its files",
                    lambda now, n=number: changed(now, n, mounted=self._mountable(now, n)),
                )
            if pod.phase != ENDED and pod.mounted != pod.in_force:
                yield f"pod {number} reads its files", lambda now, n=number: reloaded(now, n)
            for entry, _ in pod.surplus:
                yield (
                    f"pod {number} gives back what {entry} has",
                    lambda now, n=number, e=entry: given_back(now, n, e),
                )
            if pod.lingering:
                yield (
                    f"backends of pod {number} end",
                    lambda now, n=number: changed(now, n, lingering=0, top=0),
                )
            if pod.entering:
                yield (
                    f"whoever logs in to pod {number} is through",
                    lambda now, n=number: changed(now, n, entering=False),
                )
            if pod.phase == DYING:
                yield f"pod {number} ends", lambda now, n=number: ended(now, n)
            if pod.phase == LIVE and len(state.pods) < self.pods:
                yield f"pod {number} is deleted", lambda now, n=number: changed(now, n, phase=DYING)
        for name, _ in state.records:
            wanted = next(item.pods for item in self.specs[state.spec] if item.name == name)
            live = sum(pod.database == name and pod.phase == LIVE for pod in state.pods)
            if len(state.pods) < self.pods and live < wanted + 1:
                yield f"the ReplicaSet of {name} makes a pod", lambda now, n=name: self.spawned(now, n)
        if state.orphans:
            yield "backends without a client end", lambda now: now._replace(orphans=0)
        if state.spec + 1 < len(self.specs):
            yield "the specs change", lambda now: now._replace(spec=now.spec + 1)
        if state.foreign + 1 < len(self.foreign):
            yield "others come or go", lambda now: now._replace(foreign=now.foreign + 1)
        if state.former is not None:
            yield "the former operator ends", lambda now: now._replace(former=None, writes=0)
            yield from self._written_by_the_former(state, state.former)

    def operator(self, state: State) -> Iterator[Event]:
        for number, pod in enumerate(state.pods):
            if pod.heard != pod.phase:
                yield f"hear of pod {number}", lambda now, n=number: changed(now, n, heard=now.pods[n].phase)
            if pod.heard in (LIVE, DYING) and pod.phase != ENDED and pod.reading != shown(pod):
                yield f"read pod {number}", lambda now, n=number: _read(now, n)
        if state.measured != self._measured(state):
            yield "measure the server", lambda now: now._replace(measured=self._measured(now))
        if state.rules != self._rules(state):
            yield "write the rules for logins", lambda now: now._replace(rules=self._rules(now))
        steps = self.steps(state)
        for name in steps.records:
            yield f"write {name}", lambda now, n=name, item=steps.records[name]: stored(now, n, item)
        if steps.admit:
            yield f"admit {', '.join(steps.admit)}", lambda now, uids=steps.admit: admitted(now, uids)

    # The events that need the world's size

    def spawned(self, state: State, database: str) -> State:
        rules = dict(state.rules)[database]
        made = Pod(database, mounted=(0, (), rules), in_force=(0, (), rules))
        if not self.careful_pods:
            made = made._replace(in_force=(0, ((rules[0], 1),), rules))
        return state._replace(pods=(*state.pods, made))

    def _mountable(self, state: State, number: int) -> Files:
        pod = state.pods[number]
        found = dict(dict(state.records)[pod.database].allotments).get(number)
        revision, caps = pod.mounted[:2] if found is None else (found.revision, found.caps)
        return revision, caps, dict(state.rules)[pod.database]

    def _rules(self, state: State) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What the rules for logins should be."""
        return tuple((item.name, tuple(entries_of(item))) for item in self.specs[state.spec])

    def _reading(self, state: State, database: str, found: Shown) -> Reading:
        """An entry is closed if the rules in force, those stored and those wanted are the same, without it."""
        wanted = dict(self._rules(state))[database]
        known = found.rules == wanted == dict(state.rules)[database] and not found.entering
        closed = frozenset(dict(found.caps)) - set(wanted) if known else frozenset()
        return Reading(found.revision, dict(found.caps), dict(found.held), closed)

    def _measured(self, state: State) -> Measured:
        leftovers = state.orphans + sum(pod.lingering for pod in state.pods)
        lasting = self.server - self.foreign[state.foreign]
        gone = frozenset(number for number, pod in enumerate(state.pods) if pod.heard == ENDED)
        read = frozenset(number for number, pod in enumerate(state.pods) if pod.reading is not None)
        return Measured(lasting - leftovers, lasting, gone, read)

    def _replaced(self, state: State) -> State:
        """Another operator begins, and knows nothing."""
        pods = tuple(pod._replace(heard=0, reading=None) for pod in state.pods)
        known = (
            Pod(pod.database, admitted=pod.admitted, heard=pod.heard, reading=pod.reading) for pod in state.pods
        )
        former = state._replace(pods=tuple(known), orphans=0, foreign=0, former=None, writes=0)
        return state._replace(
            pods=pods, epoch=state.epoch + 1, measured=None, former=former, writes=self.writes
        )

    def _written_by_the_former(self, state: State, former: State) -> Iterator[Event]:
        """It reads the record that it writes, as the precondition demands, and takes all else for known."""
        if not state.writes:
            return
        stored_now = dict(state.records)
        for name, _ in former.records:
            known = with_record(former, name, stored_now[name]) if self.preconditions else former
            known = known._replace(rules=state.rules) if self.preconditions else known
            item = self.steps(known).records.get(name)
            if item is not None:
                yield (
                    f"the former operator writes {name}",
                    lambda now, n=name, i=item: stored(now, n, i)._replace(writes=now.writes - 1),
                )

    # What must hold

    def uncovered(self, state: State) -> list[int]:
        """Pods that may hold more than is stored of them."""
        bounds = {number: item.bound for _, written in state.records for number, item in written.allotments}
        return [
            number
            for number, pod in enumerate(state.pods)
            if pod.phase != ENDED and sum(holding(pod).values()) > bounds.get(number, 0)
        ]

    def unsatisfied(self, state: State) -> list[str]:
        """What is not as it should be in the end, where everything has settled."""
        if state not in self._verdicts:
            self._verdicts[state] = self._judged(state)
        return self._verdicts[state]

    def _judged(self, state: State) -> list[str]:
        view, measured = self.view(state), state.measured
        assert measured is not None
        given = shares(measured.lasting, self.specs[state.spec])
        found = []
        for item in self.specs[state.spec]:
            pods = [
                (number, dict(pod.in_force[1]))
                for number, pod in enumerate(state.pods)
                if pod.database == item.name and pod.phase == LIVE
            ]
            entries = {entry for consumer in item.consumers for entry in consumer.entries}
            floors = sum(consumer.floor for consumer in item.consumers)
            serving = [number for number, _ in pods if state.pods[number].admitted]
            if len(serving) < len(pods) and floors * (len(serving) + 1) <= given[item.name]:
                found.append(f"{len(pods) - len(serving)} pods of {item.name} wait although there is room")
            for number, caps in pods:
                if number in serving and caps.keys() != entries:
                    found.append(f"pod {number} has {caps} and not all of {sorted(entries)}")
                if caps != view.wanted.get(str(number), {}):
                    found.append(f"pod {number} has {caps} and not {view.wanted.get(str(number))}")
            used = sum(sum(caps.values()) for _, caps in pods)
            room_for_one_more = given[item.name] >= floors * (max(1, len(pods)) + 1)
            free = floors if item.replaceable and room_for_one_more else 0
            if serving and used != max(given[item.name] - free, floors * len(serving)):
                found.append(f"{item.name} uses {used} of {given[item.name]}")
        return found

    def held(self, state: State) -> int:
        """The most that processes may hold at this moment, with what the dead ones left."""
        return state.orphans + sum(counted(pod) for pod in state.pods)

    def settled(self, state: State) -> State:
        """Where it comes to if nothing new begins and everybody goes on with what there is to do. Raises
        AssertionError if they never come to an end."""
        way = []
        for _ in range(_PATIENCE):
            state = self._calm(state)
            if state in self._outcomes:
                break
            way.append(state)
            if (fewer := self._scaled_down(state)) != state:
                state = fewer
                continue
            steps = self.steps(state)
            if not steps.records and not steps.admit:
                self._outcomes[state] = state
                break
            for name, item in steps.records.items():
                state = stored(state, name, item)
            state = admitted(state, steps.admit)
        else:
            raise AssertionError(f"never settles: {way[-1]}")
        outcome = self._outcomes[state]
        self._outcomes.update(dict.fromkeys(way, outcome))
        return outcome

    def _scaled_down(self, state: State) -> State:
        """A Deployment gets no more replicas than there is room for; those that wait go first."""
        for item in self.specs[state.spec]:
            most = self._most_pods(state, item)
            live = [(admitted, -number) for number, admitted in available(state, item.name).items()]
            for _, number in sorted(live)[: max(0, len(live) - most)]:
                state = changed(state, -number, phase=DYING)
        return state

    def _most_pods(self, state: State, item: Pooled) -> int:
        measured, view = state.measured, self.view(state)
        assert measured is not None
        given = shares(measured.lasting, self.specs[state.spec])
        return target(item, given[item.name], view.poolers, view.records[item.name]).pods

    def deployed(self, state: State, old: Set[int] = frozenset()) -> tuple[State, str]:
        """Where it comes to, from a settled state, if the Deployments go on until nothing is left to do; the
        `old` pods are of an older template. And what never ends of it, in words; empty if all pods that are
        wanted serve."""
        for _ in range(_PATIENCE):
            before = state
            for item in self.specs[state.spec]:
                made, deleted = turn(available(state, item.name), old, *self._scale(state, item))
                for _ in range(made):
                    state = self.spawned(state, item.name)
                for number in deleted:
                    state = changed(state, number, phase=DYING)
            if state == before:
                break
            state = self.settled(state)
        held_up = []
        for item in self.specs[state.spec]:
            live, (replicas, _) = available(state, item.name), self._scale(state, item)
            if len(live) != replicas or not all(live.values()) or not old.isdisjoint(live):
                held_up.append(f"{item.name} hangs: of {live}, {sorted(old & live.keys())} are old")
        return state, "; ".join(held_up)

    def hanging(self, state: State) -> str:
        """What of a rollout never ends that begins in this settled state; empty if all ends as it should."""
        if state not in self._rollouts:
            after, held_up = self.deployed(state, frozenset(range(len(state.pods))))
            self._rollouts[state] = held_up or "; ".join(self.unsatisfied(after))
        return self._rollouts[state]

    def _scale(self, state: State, item: Pooled) -> tuple[int, int]:
        return scale(item.pods, self._most_pods(state, item))

    def _calm(self, state: State) -> State:
        """What goes on without the operator has come to its end, and the operator has looked at everything."""
        state = state._replace(former=None, writes=0, rules=self._rules(state))
        for number, pod in enumerate(state.pods):
            if pod.phase == LIVE:
                state = changed(state, number, mounted=self._mountable(state, number))
                state = changed(reloaded(state, number), number, surplus=(), lingering=0, top=0, entering=False)
            elif pod.phase == DYING:
                state = ended(state, number)
            pod = state.pods[number]
            state = changed(state, number, heard=pod.phase, reading=shown(pod) if pod.phase == LIVE else None)
        state = state._replace(orphans=0)
        return state._replace(measured=self._measured(state))


def _read(state: State, number: int) -> State:
    after = changed(state, number, reading=shown(state.pods[number]))
    if state.measured is None:
        return after
    return after._replace(measured=state.measured._replace(read=state.measured.read - {number}))


_PATIENCE = 50
"""More rounds than anything takes here."""


def available(state: State, database: str) -> dict[int, bool]:
    """The pods of a database that do not terminate, by number, and whether each serves."""
    return {
        number: pod.admitted
        for number, pod in enumerate(state.pods)
        if pod.database == database and pod.phase == LIVE
    }


def entries_of(pooled: Pooled) -> list[str]:
    return [entry for consumer in pooled.consumers for entry in consumer.entries]


def start(world: World) -> State:
    """Everything runs and is settled, with the wanted number of pods."""
    state = State(tuple((item.name, Written(0, ())) for item in world.specs[0]), ())
    state = state._replace(rules=tuple((item.name, tuple(entries_of(item))) for item in world.specs[0]))
    for item in world.specs[0]:
        for _ in range(item.pods):
            state = replace(world, careful_pods=True).spawned(state, item.name)
    return world.settled(state)


def pooled(name: str, pods: int, *weights: int, sessions: int = 0, most: int | None = None) -> Pooled:
    """A PooledDatabase with a consumer for each weight."""
    consumers = tuple(
        Consumer(f"{name}{number}", f"{name}{number}.session", weight, None, sessions)
        for number, weight in enumerate(weights)
    )
    return Pooled(name, 100, most, pods, consumers)
