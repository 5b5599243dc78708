"""Answers that are kept for a moment."""

from __future__ import annotations

import asyncio
import threading

import pytest

from eemtcleanupd.web import cache as module
from eemtcleanupd.web.cache import ANSWERS, ResponseCache


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module, "monotonic_seconds", lambda: now[0])
    return now


class Work:
    """Counts; ``may_go`` holds it up."""

    def __init__(self) -> None:
        self.times = 0
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self) -> bytes:
        self.times += 1
        answer = b"%d" % self.times
        assert self.may_go.wait(30)
        return answer


def test_however_many_ask_it_is_worked_out_once(now: list[float]) -> None:
    kept, work = ResponseCache(), Work()

    async def ask() -> list[bytes]:
        return await asyncio.gather(*(kept.get("a", work, 5) for _ in range(50)))

    assert asyncio.run(ask()) == [b"1"] * 50
    now[0] = 4.9
    assert asyncio.run(kept.get("a", work, 5)) == b"1"
    now[0] = 5.0
    assert asyncio.run(kept.get("a", work, 5)) == b"2"


def test_only_the_youngest_answers_are_kept(now: list[float]) -> None:
    kept, work = ResponseCache(), Work()

    async def ask() -> None:
        for key in range(ANSWERS):
            await kept.get(key, work, 1)
        now[0] = 2.0
        await kept.get(0, work, 1)
        await kept.get("another", work, 1)

    asyncio.run(ask())
    assert [key for key in [*range(ANSWERS), "another"] if kept.peek(key) is None] == [1]


def test_an_old_answer_is_given_while_a_new_one_is_made(now: list[float]) -> None:
    kept, work = ResponseCache(), Work()

    async def ask() -> None:
        assert await kept.get("a", work, 1, stale_seconds=5) == b"1"
        now[0] = 2.0
        work.may_go.clear()
        assert await kept.get("a", work, 1, stale_seconds=5) == b"1"
        making = kept.refresh("a", work, 1)
        work.may_go.set()
        assert await making == b"2"
        now[0] = 20.0
        assert await kept.get("a", work, 1, stale_seconds=5) == b"3"

    asyncio.run(ask())


def test_what_was_begun_before_a_change_is_not_kept_after_it(now: list[float]) -> None:
    kept, work = ResponseCache(), Work()

    async def ask() -> None:
        work.may_go.clear()
        before = kept.refresh("a", work, 100)
        while not work.times:
            await asyncio.sleep(0)
        kept.clear()
        after = asyncio.create_task(kept.get("a", work, 100))
        while work.times < 2:
            await asyncio.sleep(0)
        work.may_go.set()
        assert [await before, await after] == [b"1", b"2"]
        assert await kept.get("a", work, 100) == b"2"

    asyncio.run(ask())


def test_a_failure_is_told_to_all_who_wait_and_tried_again(now: list[float]) -> None:
    kept = ResponseCache()

    def fail() -> bytes:
        raise ValueError("no")

    async def ask() -> list[bytes | BaseException]:
        return await asyncio.gather(*(kept.get("a", fail) for _ in range(3)), return_exceptions=True)

    assert [str(each) for each in asyncio.run(ask())] == ["no"] * 3
    assert asyncio.run(kept.get("a", Work())) == b"1"
