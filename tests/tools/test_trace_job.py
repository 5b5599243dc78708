"""The trace of one job through the modules of the package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tools import trace_job
from tools.trace_job import Trace


def test_growth_is_what_the_second_trace_has_more() -> None:
    one = Trace({"a.py": 5, "b.py": 1}, 2)
    two = Trace({"a.py": 5, "b.py": 3, "c.py": 1}, 3)
    assert one.growth(two) == {"b.py": 2, "c.py": 1}


@pytest.mark.slow
def test_it_prints_the_modules_of_a_command_and_of_one_more_job_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    trace_job.main()
    command, one_more_job = capsys.readouterr().out.split("One more job")
    # The command itself runs once, the pipeline runs for every job.
    for module, is_of_a_job in (("cli/main.py", False), ("cleanup/pipeline.py", True)):
        assert module in command
        assert (module in one_more_job) is is_of_a_job
    assert list(tmp_path.iterdir()) == []
