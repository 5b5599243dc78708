"""The real root of the deletion tests, for the tests of backups."""

from tests.deletion.conftest import root

__all__ = ["root"]
