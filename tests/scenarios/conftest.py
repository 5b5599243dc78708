"""Whole behaviours use the job store of the tests of a run."""

from tests.cleanup.conftest import backend, store

__all__ = ["backend", "store"]
