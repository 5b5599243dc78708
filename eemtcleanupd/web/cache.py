"""Answers that are good for a moment: however many ask, each is worked out once, and in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from eemtcleanupd.clock import monotonic_seconds

SECONDS = 2.0
PLAN_SECONDS = 30.0
# Nobody needs more at a time; but with `?limit=` whoever may read can ask for a hundred thousand.
ANSWERS = 64


class ResponseCache:
    """Keeps answers.  All but :meth:`forget` belongs to the event loop, so nothing here needs a lock."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[float, bytes]] = {}
        self._making: dict[Hashable, asyncio.Task[bytes]] = {}
        self._asked: dict[Hashable, tuple[Hashable, str]] = {}

    def peek(self, key: Hashable) -> bytes | None:
        """Return the last answer, whatever its age."""
        made = self._answers.get(key)
        return None if made is None else made[1]

    async def get(
        self, key: Hashable, make: Callable[[], bytes], seconds: float = SECONDS, stale_seconds: float = 0.0
    ) -> bytes:
        """Return an answer.

        Args:
            key: whose answer.
            make: works it out, in a thread.
            seconds: how long it is good for.
            stale_seconds: for how long after that it is given while a new one is made.
        """
        made, now = self._answers.get(key), monotonic_seconds()
        if made is not None and now < made[0]:
            return made[1]
        task = self.refresh(key, make, seconds)
        if made is not None and now < made[0] + stale_seconds:
            return made[1]
        return await asyncio.shield(task)  # others wait for it as well

    def refresh(
        self, key: Hashable, make: Callable[[], bytes], seconds: float = SECONDS
    ) -> asyncio.Task[bytes]:
        """Let an answer be made, unless that is under way; nobody need wait for it."""
        task = self._making.get(key)
        if task is None:
            task = asyncio.create_task(self._make(key, make, seconds))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._making[key] = task
        return task

    async def _make(self, key: Hashable, make: Callable[[], bytes], seconds: float) -> bytes:
        answers, making = self._answers, self._making
        try:
            answer = await asyncio.to_thread(make)
        finally:
            making.pop(key, None)
        # What was forgotten meanwhile is kept where nobody looks any more.
        answers.pop(key, None)  # the youngest comes last
        answers[key] = (monotonic_seconds() + seconds, answer)
        if len(answers) > ANSWERS:
            del answers[next(iter(answers))]
        return answer

    def remember_key(self, question: Hashable, key: Hashable, media_type: str) -> None:
        """Remember which answer a question has."""
        self._asked.pop(question, None)  # the youngest comes last
        self._asked[question] = (key, media_type)
        if len(self._asked) > ANSWERS:
            del self._asked[next(iter(self._asked))]

    def fresh(self, question: Hashable) -> tuple[bytes, str] | None:
        """Return the answer to a question and its media type, None when none is still good."""
        key, media_type = self._asked.get(question, (None, ""))
        made = self._answers.get(key)
        return None if made is None or self.is_expired(key) else (made[1], media_type)

    def is_expired(self, key: Hashable) -> bool:
        """Tell whether there is no answer that is still good."""
        made = self._answers.get(key)
        return made is None or made[0] <= monotonic_seconds()

    def clear(self) -> None:
        """Let everything be worked out anew, what is under way too.  In any thread."""
        self._answers, self._making = {}, {}
