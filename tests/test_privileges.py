"""The user that a process becomes; tests/scenarios/test_hostile_rights.py tries the change itself."""

from __future__ import annotations

import pwd

from eemtcleanupd.privileges import User
from tests.hostile import UID


def test_a_user_without_a_name_is_in_no_group_but_nogroup() -> None:
    assert UID not in {entry.pw_uid for entry in pwd.getpwall()}
    assert User.of(UID) == User(UID, 65534, str(UID), ())
