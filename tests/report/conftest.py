"""Fixtures for what people ask about a job store."""

from tests.cleanup.conftest import backend, store

__all__ = ["backend", "store"]
