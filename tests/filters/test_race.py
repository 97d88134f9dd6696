"""The race, along a list: when each attempt begins, who wins, what becomes of the others, how losing is told."""

from __future__ import annotations

import anyio
import pytest

from allswell._clock import monotonic
from allswell._dial.race import in_turn
from allswell._errors import ConnectFailed
from tests.support.lag import LAG, stagger

pytestmark = pytest.mark.anyio


class Runners:
    """Attempts by name: each succeeds after so many seconds, or fails so.

    :ivar began: when, from the first on.
    :ivar ended: those that were not called off.
    """

    def __init__(self, **outcomes: float | tuple[float, BaseException]) -> None:
        self._outcomes = outcomes
        self.began: dict[str, float] = {}
        self.ended: list[str] = []
        self.discarded: list[str] = []
        self._since = monotonic()

    async def run(self) -> str:
        return await in_turn(list(self._outcomes), self._attempt, self.discarded.append)

    async def _attempt(self, name: str) -> str:
        self.began[name] = monotonic() - self._since
        outcome = self._outcomes[name]
        seconds, error = outcome if isinstance(outcome, tuple) else (outcome, None)
        await anyio.sleep(seconds)
        self.ended.append(name)
        if error is not None:
            raise error
        return name


def failing(seconds: float, told: str = "no") -> tuple[float, BaseException]:
    return seconds, ConnectFailed(told, phase="tcp", by="peer")


async def test_the_next_begins_after_the_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    stagger(monkeypatch, 0.1)
    runners = Runners(a=6 * LAG, b=6 * LAG, c=0.0)
    assert await runners.run() == "c"
    assert runners.began["a"] + 0.09 < runners.began["b"] < runners.began["c"] - 0.09
    assert runners.ended == ["c"]


async def test_any_failure_begins_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only that of the one before."""
    stagger(monkeypatch, 0.01)
    second_began = anyio.Event()

    async def attempt(name: str) -> str:
        if name == "first":
            stagger(monkeypatch, 6 * LAG)  # between the second and the third
            await second_began.wait()
            raise ConnectFailed("no", phase="tcp", by="peer")
        if name == "second":
            second_began.set()
            await anyio.sleep_forever()
        return name

    began = monotonic()
    assert await in_turn(["first", "second", "third"], attempt, lambda _: None) == "third"
    assert monotonic() - began < LAG


async def test_one_that_comes_second_is_discarded() -> None:
    """It could not be called off any more."""
    other_began = anyio.Event()
    discarded: list[str] = []

    async def attempt(name: str) -> str:
        if name == "one":
            await other_began.wait()
        else:
            other_began.set()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.1)
        return name

    with pytest.MonkeyPatch.context() as patch:
        stagger(patch, 0.01)
        assert await in_turn(["one", "other"], attempt, discarded.append) == "one"
    assert discarded == ["other"]


async def test_a_single_one_fails_in_its_own_words() -> None:
    error = ConnectFailed("refused", phase="tls", by="peer")
    with pytest.raises(ConnectFailed) as caught:
        await Runners(a=(0.0, error)).run()
    assert caught.value is error


async def test_all_are_told_of() -> None:
    with pytest.raises(ConnectFailed, match=r"^third \(before that: first\) \(before that: second\)$") as caught:
        await Runners(a=failing(0, "first"), b=failing(0, "second"), c=failing(0, "third")).run()
    assert (caught.value.phase, caught.value.by) == ("tcp", "peer")


async def test_what_is_no_failure_to_connect_ends_it() -> None:
    with pytest.raises(ZeroDivisionError):
        await Runners(a=(0.0, ZeroDivisionError()), b=6 * LAG).run()
