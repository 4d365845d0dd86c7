"""The index of what readers ask for, against a look at every reader."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from entrepot.core.ranges import LAST_NUMBER, as_set, clip, front, numbers
from entrepot_hub.core.ledger import WantOrder
from entrepot_hub.core.readers import ASKER_LIFE, KEPT_WINDOW, LATE, Readers

COUNT = 12
NODES = ("a", "b", "c", "d")
number = st.integers(0, COUNT + 2)
ranges = st.lists(st.tuples(number, number).map(lambda pair: (min(pair), max(pair))), min_size=1, max_size=3)
OPERATIONS = st.one_of(
    st.tuples(st.just("hear"), st.sampled_from(NODES), ranges, st.integers(1, 5), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("forget"), st.sampled_from(NODES)),
    st.tuples(st.just("flip"), number),
    st.tuples(st.just("satisfied"), number),
    st.tuples(st.just("wait"), st.sampled_from((0.1, 1.0, LATE, 5.0, ASKER_LIFE))),
    st.tuples(st.just("learn")),
)


class Plain:
    """Wants, and what is ready, looked through at every question."""

    def __init__(self) -> None:
        self.orders: dict[str, tuple[WantOrder, float]] = {}
        self.has: dict[str, dict[int, float]] = {}
        self.count: int | None = None

    def pass_time(self, now: float) -> None:
        for node in [node for node, (order, _) in self.orders.items() if now >= order.until]:
            self.forget(node)
        for has in self.has.values():
            for each in [each for each, at in has.items() if at <= now - LATE]:
                del has[each]

    def forget(self, node: str) -> None:
        self.orders.pop(node, None)
        self.has.pop(node, None)

    def window(self, node: str, now: float, ready: set[int]) -> tuple[int, ...]:
        order, heard = self.orders[node]
        if self.count is None:
            return front(order.ranges, order.window)
        asked = clip(order.ranges, self.count)
        if order.keep and now > heard + ASKER_LIFE:
            return tuple(each for each in numbers(as_set(asked)) if each not in ready)[:KEPT_WINDOW]
        return front(asked, order.window)

    def near(self, asked: int, now: float, ready: set[int]) -> list[str]:
        return [node for node in self.orders if asked in self.window(node, now, ready)]

    def needed(self, now: float, ready: set[int]) -> set[int]:
        return {
            each
            for node in self.orders
            for each in self.window(node, now, ready)
            if each not in self.has[node] and each not in ready
        }


@settings(max_examples=300, deadline=None)
@given(st.lists(OPERATIONS, max_size=40))
def test_the_index_knows_what_a_look_at_everybody_would_find(operations: list[tuple[object, ...]]) -> None:
    """Whatever was heard, forgotten, brought, evicted and waited: the same objects are needed, the same readers want
    them, and every reader that may be granted something anew is told of."""
    now, ready = 1000.0, set[int]()
    readers, plain = Readers(ready.__contains__), Plain()
    known: dict[str, set[int]] = {}
    for operation in operations:
        match operation:
            case ("hear", str(node), list(asked), int(window), int(life), bool(keep)):
                order = WantOrder("demo", b"l" * 8, b"s" * 32, node, tuple(asked), window, now + 10 * life, keep)
                readers.hear(order, now, ready)
                plain.orders[node] = (order, now)
                plain.has.setdefault(node, {})
            case ("forget", str(node)):
                assert readers.forget(node) == (node in plain.orders)
                plain.forget(node)
            case ("flip", int(which)):
                ready ^= {which}
                readers.moved(which)
            case ("satisfied", int(which)):
                readers.satisfied(which, now)
                for node, (order, _) in plain.orders.items():
                    if any(first <= which <= last for first, last in order.ranges):
                        plain.has[node][which] = now
            case ("wait", float(seconds)):
                now += seconds
            case _:
                readers.learn(COUNT)
                plain.count = COUNT
        due = min(readers.due(), default=float("inf"))
        ends = [order.until for order, _ in plain.orders.values()]
        assert due == min([*ends, *(at + LATE for has in plain.has.values() for at in has.values())], default=due)
        readers.pass_time(now)
        plain.pass_time(now)
        assert list(readers.wants) == list(plain.orders)
        assert readers.needed(now, ready) == plain.needed(now, ready)
        for each in range(COUNT + 4):
            assert [reader.order.node for reader in readers.near(each, now, ready)] == plain.near(each, now, ready)
        stirred = {reader.order.node for reader in readers.stirred()}
        for node in plain.orders:
            waits = {n for n in plain.window(node, now, ready) if n not in ready and n not in plain.has[node]}
            assert node in stirred or waits <= known.get(node, set()), "nobody told of what it may be granted"
            known[node] = waits
        known = {node: known[node] for node in plain.orders}


def test_without_its_length_a_stream_has_any_object() -> None:
    """Before the opening is known a want is taken as it is."""
    readers = Readers(lambda _number: False)
    order = WantOrder("demo", b"l" * 8, b"s" * 32, "a", ((7, LAST_NUMBER),), 3, 60.0)
    readers.hear(order, 0.0, set())
    assert readers.needed(1.0, set()) == {7, 8, 9}
    readers.learn(8)
    assert readers.needed(1.0, set()) == {7}
