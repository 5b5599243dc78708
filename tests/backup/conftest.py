"""The real root of the deletion tests, for the tests of backups."""

from tests.deletion.conftest import mount_tmpfs, root

__all__ = ["mount_tmpfs", "root"]
