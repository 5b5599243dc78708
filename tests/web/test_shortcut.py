"""The shortcut to an answer that is still good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from eemtcleanupd.web import cache as kept_module
from eemtcleanupd.web.auth import Authenticator
from eemtcleanupd.web.cache import ANSWERS, SECONDS, ResponseCache
from eemtcleanupd.web.shortcut import CacheMiddleware, cache_question


class Door:
    """Lets in who names the word; counts who asks at it."""

    def may_read(self, request: Request) -> bool:
        return request.headers.get("word") == "sesame"


class Served:
    """A program with one route, which counts how often it is gone to."""

    def __init__(self) -> None:
        self.kept, self.times, self.now = ResponseCache(), 0, 0.0
        app = FastAPI()

        @app.api_route("/a", methods=["GET", "POST", "HEAD"])
        async def a(request: Request, limit: int = 1) -> Response:
            self.times += 1
            made = await self.kept.get(("a", limit), lambda: b"%d" % limit)
            self.kept.remember_key(cache_question(request.scope), ("a", limit), "text/x-number")
            return Response(made, media_type="text/x-number")

        self.client = TestClient(CacheMiddleware(app, self.kept, cast("Authenticator", Door())))

    def ask(self, path: str = "/a", *, method: str = "GET", word: str = "sesame") -> tuple[int, str]:
        answer = self.client.request(method, path, headers={"word": word})
        return answer.status_code, answer.text


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    served = Served()
    monkeypatch.setattr(kept_module, "monotonic_seconds", lambda: served.now)
    return served


def test_the_same_question_goes_to_its_route_once_while_its_answer_is_good(served: Served) -> None:
    first = served.client.get("/a", headers={"word": "sesame"})
    again = served.client.get("/a", headers={"word": "sesame"})
    assert (again.content, again.headers, served.times) == (first.content, first.headers, 1)
    served.now = SECONDS
    assert served.ask() == (200, "1")
    assert served.times == 2


def test_who_may_not_and_who_asks_otherwise_goes_to_the_route(served: Served) -> None:
    served.ask()
    others: list[Callable[[], Any]] = [
        lambda: served.ask(word="wrong"),
        lambda: served.ask(method="POST"),
        lambda: served.ask(method="HEAD"),
    ]
    for number, other in enumerate(others):
        other()
        assert served.times == 2 + number
    served.ask("/a%3Flimit=1")  # another path, which no route has
    assert served.ask("/a%3Flimit=1")[0] == 404


def test_other_parameters_are_another_question(served: Served) -> None:
    assert [served.ask(f"/a?limit={limit}") for limit in (1, 2, 1, 2)] == [(200, "1"), (200, "2")] * 2
    assert served.times == 2
    assert served.ask("/a?limit=no")[0] == 422


def test_what_was_changed_is_forgotten(served: Served) -> None:
    served.ask()
    served.kept.clear()
    served.ask()
    assert served.times == 2


def test_only_so_many_questions_are_remembered(served: Served) -> None:
    async def note() -> None:
        await served.kept.get("key", lambda: b"good")
        for number in range(ANSWERS + 1):
            served.kept.remember_key(number, "key", "text/plain")

    asyncio.run(note())
    assert [served.kept.fresh(number) for number in (0, 1)] == [None, (b"good", "text/plain")]
