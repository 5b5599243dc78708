"""Numbers in sentences: the noun agrees with the number, and people see thousands separators."""

from __future__ import annotations

import re
from pathlib import Path

import eemtcleanupd
from eemtcleanupd.formatting import plural

# A value before a plural that people read.  `plural` writes "1 job", and groups the digits.
PLURAL = re.compile(
    r"\{([^{}]+)\} (?:jobs|items|runs|errors|lines|files|folders|rows|messages|problems|recipients|services"
    r"|days|seconds|tokens|orphans)\b"
)
NO_NUMBER = {"workflow", "job_class"}  # words: "sol jobs"


def test_every_sentence_with_a_number_uses_plural() -> None:
    package = Path(eemtcleanupd.__file__).parent
    found = [
        f"{path.relative_to(package)}: {match[0]}"
        for path in package.rglob("*.py")
        for match in PLURAL.finditer(path.read_text(encoding="utf-8"))
        # A constant is never 1, and what checks for 1 itself is right.
        if not re.fullmatch(r"_?[A-Z_]+(:g)?|self\._?[A-Z_]+(:g)?", match[1])
        and match[1] not in NO_NUMBER
        and "plural" not in match[1]
    ]
    allowed = {
        "policy/retention.py: {self.keep_last} jobs",
        "policy/retention.py: {days:,g} days",
        "cli/progress.py: {rate:,.0f} files",
        "delivery/worker.py: {limit:g} seconds",
        "plugins/manager.py: {self._veto_seconds:g} seconds",
    }
    assert set(found) <= allowed, set(found) - allowed


def test_a_noun_agrees_with_its_number() -> None:
    assert plural(0, "job") == "0 jobs"
    assert plural(1, "failed job") == "1 failed job"
    assert plural(1234567, "job") == "1,234,567 jobs"
    assert plural(1234567, "job", grouped=False) == "1234567 jobs"
