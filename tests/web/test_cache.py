"""The cache of answers, and the middleware that serves fresh ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from eemtcleanupd.web.auth import Authenticator
from eemtcleanupd.web.cache import (
    FRESH_SECONDS,
    MAX_ANSWERS,
    CacheMiddleware,
    ResponseCache,
    request_key,
)


class Computation:
    """Returns how often it was called; it waits while ``may_finish`` is cleared."""

    def __init__(self) -> None:
        self.calls = 0
        self.may_finish = threading.Event()
        self.may_finish.set()

    def __call__(self) -> bytes:
        self.calls += 1
        answer = b"%d" % self.calls
        assert self.may_finish.wait(30)
        return answer


class TestResponseCache:
    @pytest.fixture(autouse=True)
    def _create(self) -> None:
        self.now = 0.0
        self.cache = ResponseCache(lambda: self.now)
        self.compute = Computation()

    def test_an_answer_is_computed_once_for_all_clients_while_it_is_fresh(self) -> None:
        async def ask() -> list[bytes]:
            return await asyncio.gather(*(self.cache.get("a", self.compute, 5) for _ in range(50)))

        assert asyncio.run(ask()) == [b"1"] * 50
        self.now = 4.9
        assert asyncio.run(self.cache.get("a", self.compute, 5)) == b"1"
        self.now = 5.0
        assert asyncio.run(self.cache.get("a", self.compute, 5)) == b"2"

    def test_the_answer_computed_longest_ago_is_evicted(self) -> None:
        async def fill() -> None:
            for key in range(MAX_ANSWERS):
                await self.cache.get(key, self.compute, 1)
            self.now = 2.0
            await self.cache.get(0, self.compute, 1)
            await self.cache.get("another", self.compute, 1)

        asyncio.run(fill())
        assert [key for key in [*range(MAX_ANSWERS), "another"] if self.cache.peek(key) is None] == [1]

    def test_a_stale_answer_is_returned_while_a_new_one_is_computed(self) -> None:
        async def ask() -> None:
            assert await self.cache.get("a", self.compute, 1, stale_seconds=5) == b"1"
            self.now = 2.0
            self.compute.may_finish.clear()
            assert await self.cache.get("a", self.compute, 1, stale_seconds=5) == b"1"
            task = self.cache.refresh("a", self.compute, 1)
            self.compute.may_finish.set()
            assert await task == b"2"
            self.now = 20.0
            assert await self.cache.get("a", self.compute, 1, stale_seconds=5) == b"3"

        asyncio.run(ask())

    def test_an_answer_that_was_started_before_a_change_is_not_cached_after_it(self) -> None:
        async def ask() -> None:
            self.compute.may_finish.clear()
            before = self.cache.refresh("a", self.compute, 100)
            while not self.compute.calls:
                await asyncio.sleep(0)
            self.cache.clear()
            after = asyncio.create_task(self.cache.get("a", self.compute, 100))
            while self.compute.calls < 2:
                await asyncio.sleep(0)
            self.compute.may_finish.set()
            assert [await before, await after] == [b"1", b"2"]
            assert await self.cache.get("a", self.compute, 100) == b"2"

        asyncio.run(ask())

    def test_an_error_reaches_all_waiting_clients_and_the_next_one_tries_again(self) -> None:
        def fail() -> bytes:
            raise ValueError

        async def ask() -> list[bytes | BaseException]:
            return await asyncio.gather(
                *(self.cache.get("a", fail) for _ in range(3)), return_exceptions=True
            )

        assert [type(result) for result in asyncio.run(ask())] == [ValueError] * 3
        assert asyncio.run(self.cache.get("a", self.compute)) == b"1"


class PasswordCheck:
    """Allows requests with the right password header."""

    def may_read(self, request: Request) -> bool:
        return request.headers.get("password") == "sesame"


class CountingApp:
    """An application with one route that counts its calls, behind the middleware."""

    def __init__(self) -> None:
        self.calls, self.now = 0, 0.0
        self.cache = ResponseCache(lambda: self.now)
        app = FastAPI()

        @app.api_route("/a", methods=["GET", "POST", "HEAD"])
        async def a(request: Request, limit: int = 1) -> Response:
            self.calls += 1
            body = await self.cache.get(("a", limit), lambda: b"%d" % limit)
            self.cache.remember_key(request_key(request.scope), ("a", limit), "text/x-number")
            return Response(body, media_type="text/x-number")

        self.client = TestClient(CacheMiddleware(app, self.cache, cast("Authenticator", PasswordCheck())))

    def ask(self, path: str = "/a", *, method: str = "GET", password: str = "sesame") -> tuple[int, str]:
        answer = self.client.request(method, path, headers={"password": password})
        return answer.status_code, answer.text


class TestCacheMiddleware:
    @pytest.fixture(autouse=True)
    def _create(self) -> None:
        self.app = CountingApp()

    def test_equal_requests_reach_the_route_once_while_the_answer_is_fresh(self) -> None:
        first, second = (self.app.client.get("/a", headers={"password": "sesame"}) for _ in range(2))
        assert (second.content, second.headers, self.app.calls) == (first.content, first.headers, 1)
        self.app.now = FRESH_SECONDS
        assert self.app.ask() == (200, "1")
        assert self.app.calls == 2

    def test_refused_clients_other_methods_and_other_paths_reach_the_route(self) -> None:
        self.app.ask()
        others: list[Callable[[], Any]] = [
            lambda: self.app.ask(password="wrong"),
            lambda: self.app.ask(method="POST"),
            lambda: self.app.ask(method="HEAD"),
        ]
        for number, other in enumerate(others):
            other()
            assert self.app.calls == 2 + number
        self.app.ask("/a%3Flimit=1")  # a different path, without a route
        assert self.app.ask("/a%3Flimit=1")[0] == 404

    def test_requests_with_other_parameters_have_other_answers(self) -> None:
        assert [self.app.ask(f"/a?limit={limit}") for limit in (1, 2, 1, 2)] == [(200, "1"), (200, "2")] * 2
        assert self.app.calls == 2
        assert self.app.ask("/a?limit=no")[0] == 422

    def test_a_cleared_cache_serves_nothing(self) -> None:
        self.app.ask()
        self.app.cache.clear()
        self.app.ask()
        assert self.app.calls == 2

    def test_the_number_of_remembered_requests_is_limited(self) -> None:
        cache = self.app.cache

        async def remember() -> None:
            await cache.get("key", lambda: b"answer")
            for number in range(MAX_ANSWERS + 1):
                cache.remember_key(number, "key", "text/plain")

        asyncio.run(remember())
        assert [cache.fresh(number) for number in (0, 1)] == [None, (b"answer", "text/plain")]
