"""The queues of waiters, by themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from allswell._pool.waiters import Waiters

ROUTES = ["a", "b", "c"]


def test_in_order() -> None:
    waiters: Waiters[str, int] = Waiters()
    for number, route in enumerate("abab"):
        waiters.add(route, number)
    assert waiters.of("a") == [0, 2]
    assert list(waiters) == [0, 2, 1, 3]
    assert waiters.first_without_dial("b") == 1
    assert waiters.routes_without_dial() == ["a", "b"]
    waiters.with_dial("a", 0)
    assert waiters.routes_without_dial() == ["b", "a"]
    assert waiters.of("a") == [0, 2]
    waiters.remove("a", 0)
    waiters.remove("a", 0)
    waiters.remove("a", 2)
    assert not waiters.waiting("a")
    assert waiters.first_without_dial("a") is None
    assert len(waiters) == 2


@given(st.lists(st.tuples(st.sampled_from(["add", "cover", "uncover", "remove"]), st.sampled_from(ROUTES))))
def test_against_a_simple_model(steps: list[tuple[str, str]]) -> None:
    """The same as lists that are searched from end to end."""
    waiters: Waiters[str, int] = Waiters()
    queue: list[tuple[str, int]] = []
    starved: list[tuple[str, int]] = []
    for number, (step, route) in enumerate(steps):
        mine = [entry for entry in queue if entry[0] == route]
        if step == "add":
            waiters.add(route, number)
            queue.append((route, number))
            starved.append((route, number))
        elif mine:
            entry = mine[number % len(mine)]
            if step == "uncover" and entry not in starved:
                waiters.without_dial(*entry)
                starved.append(entry)
            elif step == "cover":
                waiters.with_dial(*entry)
                starved = [each for each in starved if each != entry]
            elif step == "remove":
                waiters.remove(*entry)
                queue.remove(entry)
                starved = [each for each in starved if each != entry]
        for each in ROUTES:
            assert waiters.of(each) == [who for where, who in queue if where == each]
            assert waiters.first_without_dial(each) == next((who for where, who in starved if where == each), None)
            assert waiters.waiting(each) == any(where == each for where, _ in queue)
        assert waiters.routes_without_dial() == list(dict.fromkeys(where for where, _ in starved))
        assert len(waiters) == len(queue)
