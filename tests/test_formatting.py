"""Format and parse sizes, ages and untrusted names."""

import os
import re
import subprocess
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from eemtcleanupd.formatting import (
    human_age,
    human_size,
    local_time,
    parse_hours,
    parse_size,
    printable,
    quoted,
    shortened,
)

GB = 1024**3


def test_a_time_that_its_zone_does_not_have_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert local_time(datetime.max.replace(tzinfo=UTC)) == "Fri 9999-12-31 23:59 +0000"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("size", "text", "fixed"),
    [
        (0, "0 B", "0 B"),
        (1, "1 B", "1 B"),
        (1023, "1023 B", "1023 B"),
        (250 * 1024**2, "250 MB", "250.0 MB"),
        (15 * GB, "15 GB", "15.0 GB"),
        (48318382080, "45 GB", "45.0 GB"),
        (int(45.5 * GB), "45.5 GB", "45.5 GB"),
        (2 * 1024**4, "2 TB", "2.0 TB"),
    ],
)
def test_a_size_is_formatted_in_powers_of_1024(size: int, text: str, fixed: str) -> None:
    assert (human_size(size), human_size(size, fixed=True)) == (text, fixed)


@pytest.mark.parametrize(
    ("text", "size"),
    [("10G", 10 * GB), ("1.5 GiB", 3 * GB // 2), ("500 MB", 500 * 1024**2), ("7", 7), ("2k", 2048), ("0", 0)],
)
def test_a_size_is_parsed_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "ten", "10X", "1e3", "10 G B", "inf"])
def test_an_invalid_size_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="10G"):
        parse_size(text)


def test_a_size_that_is_too_large_is_an_error_too() -> None:
    with pytest.raises(ValueError, match="too large"):
        parse_size("9" * 400 + "G")


@pytest.mark.parametrize(
    ("age", "precise", "rough"),
    [
        (timedelta(days=8.2), "8.2 days", "8 days"),
        (timedelta(days=1), "1.0 days", "1 day"),
        (timedelta(hours=11), "11.0 hours", "11 hours"),
        (timedelta(hours=23.9), "23.9 hours", "23 hours"),
    ],
)
def test_an_age_is_formatted_in_days_or_hours(age: timedelta, precise: str, rough: str) -> None:
    assert (human_age(age), human_age(age, precise=False)) == (precise, rough)


@given(st.text(st.characters(codec=None, categories=["Cc", "Cs", "Zl", "Zp", "Cf", "L"])))
def test_an_untrusted_name_stays_on_its_line(name: str) -> None:
    line = printable(name)
    assert len(line.splitlines()) <= 1
    assert "\x1b" not in line
    line.encode("utf-8")


def test_different_names_stay_different_and_bytes_are_escaped() -> None:
    assert printable("a\nb") == "a\\x0ab"
    assert len(printable("\0" * 1_000_000)) < 100_000
    assert printable("a\\x0ab") != printable("a\nb")
    assert printable("caf\udce9") == "caf\\xe9"


@given(st.text(max_size=300), st.integers(10, 250))
def test_a_shortened_text_fits(text: str, limit: int) -> None:
    assert len(shortened(text, limit)) <= limit or len(text) <= limit


@pytest.mark.parametrize(
    ("text", "hours"),
    [("90m", 1.5), ("12h", 12), ("7d", 168), ("2w", 336), ("1.5 D", 36), ("24", 24), ("0", 0), ("-1", -1)],
)
def test_a_duration_has_a_unit_or_is_a_number_of_hours(text: str, hours: float) -> None:
    assert parse_hours(text) == hours


@pytest.mark.parametrize("text", ["", "week", "7 days", "d", "-1d", "1h30m", "nan", "inf", "1e999", "7d7"])
def test_other_text_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_hours(text)


PATHS = [
    "/a",
    "/a b",
    "/it's; `id` $(id)",
    "/a\nid\n",
    "/\x1b]0;x\x07\\",
    "/b\udc80\udcff7",
    "/\u202eabc'",
    "/-n *",
]


@pytest.mark.parametrize("path", PATHS)
def test_the_shell_gets_the_path_that_is_quoted(path: str) -> None:
    word = quoted(path)
    assert word.isprintable()
    shell = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert shell.stdout == os.fsencode(path)
