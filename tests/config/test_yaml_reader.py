"""The YAML reader: positions, duplicate keys, surprises of YAML 1.1, and hostile files."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from eemtcleanupd.config.yaml_reader import dotted, read_document
from eemtcleanupd.errors import ConfigError
from tests.config.conftest import LoadText, RefuseText


def test_keys_and_values_have_positions(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a:\n  - b: 1\n    c:   two\n")
    document = read_document(file)
    assert document.data == {"a": [{"b": 1, "c": "two"}]}
    assert document.place(("a", 0, "c")) == f"{file}:3:10"
    assert document.place(("a", 0, "c"), of_key=True) == f"{file}:3:5"
    assert document.place(("a", 0, "missing")) == f"{file}:2:5"


def test_a_duplicate_key_is_reported_with_both_lines(refuse_text: RefuseText) -> None:
    message = refuse_text(
        "dry_run: true\nretention:\n  failed_jobs: {hours: 1}\n  failed_jobs: {hours: 900}\n"
    )
    assert message.startswith("FILE:4:3: retention.failed_jobs: ")
    assert "line 3" in message


@pytest.mark.parametrize(
    ("text", "place", "key", "detail"),
    [
        ("retention: {failed_jobs: {hours: 12:30}}", "FILE:1:34", "failed_jobs.hours", "750"),
        ("retention: {failed_jobs: {hours: 12:30:00}}", "FILE:1:34", "failed_jobs.hours", "45000"),
        ("performance: {max_workers: 010}", "FILE:1:28", "performance.max_workers", "10"),
        ("retention: {failed_jobs: {hours: 1e3}}", "FILE:1:34", "failed_jobs.hours", "1000"),
        ('retention: {failed_jobs: {hours: "12"}}', "FILE:1:34", "failed_jobs.hours", "quotes"),
        ("notifications: {email: {smtp_server: no}}", "FILE:1:38", "email.smtp_server", "false"),
        ("notifications: {email: {smtp_server: 2024-01-01}}", "FILE:1:38", "email.smtp_server", "date"),
        ("notifications: {email: {smtp_server: 2024-13-45}}", "FILE:1:38", "email.smtp_server", "quotes"),
        ("plugins: [12]", "FILE:1:11", "plugins[0]", "number"),
        ('dry_run: "yes"', "FILE:1:10", "dry_run", "quotes"),
        ("schedule: {cron: @daily}", "FILE:1:18", "", "quotes"),
        ("retention: {log_patterns: [*.log]}", "FILE:1:29", "", "quotes"),
        ("retention:\n\tfailed_jobs:\n", "FILE:2:1", "", "spaces"),
        ("retention: failed_jobs: 3", "FILE:1:23", "", "indentation"),
        ("dry_run: [true", "FILE:2:1", "", "YAML"),
        ("dry_run: true\n---\ndry_run: false\n", "FILE:2:1", "", "YAML"),
        ("- retention", "FILE:1:1", "", "mapping"),
        ("just words", "FILE:1:1", "", "mapping"),
        ("? [a, b]\n: 1\n", "FILE:1:3", "", "key"),
        ("retention: !!python/object:os.system {}", "FILE:1:12", "retention", "tag"),
        ("retention: {<<: {hours: 1}}", "FILE:1:13", "retention.<<", "key"),
    ],
)
def test_a_value_that_yaml_reads_differently_is_explained(
    refuse_text: RefuseText, text: str, place: str, key: str, detail: str
) -> None:
    message = refuse_text(text)
    assert message.startswith(f"{place}: ")
    assert key in message
    assert detail in message.lower() or detail in message


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "\ufeff"])
def test_an_empty_file_has_the_defaults(load_text: LoadText, text: str) -> None:
    assert set(load_text(text).origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"dry_run: \xff", "byte 10"),
        (b"dry_run: true \x00", "YAML"),
        (b"#" * 1_000_001, "1 MB"),
        (b"[" * 40_000, "nested"),
        (b"a: &a [*a]", "values"),
        (
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(
                b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (n, n, *[n - 1] * 8) for n in range(98, 108)
            ),
            "values",
        ),
    ],
)
def test_a_file_that_cannot_be_a_configuration_is_refused_quickly(
    refuse_text: RefuseText, content: bytes, detail: str
) -> None:
    started = time.process_time()
    assert detail in refuse_text(content)
    assert time.process_time() - started < 2


def test_a_file_that_cannot_be_read_is_an_error_with_its_path_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, code in (("", errno.EISDIR), ("absent", errno.ENOENT), ("loop", errno.ELOOP)):
        with pytest.raises(ConfigError) as caught:
            read_document(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert os.strerror(code) in str(caught.value)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    text=st.one_of(
        st.text(),
        st.binary(),
        st.text(alphabet="ab:*&!?-[]{}#|>\"'%@` \n\t,0.1~\\"),
        st.lists(
            st.sampled_from(["retention:", " hours: 1\n", "- ", "\n", "  ", "&a ", "*a", "? ", "!x "])
        ).map("".join),
    )
)
def test_any_content_loads_or_is_a_configuration_error(load_text: LoadText, text: str | bytes) -> None:
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    with contextlib.suppress(ConfigError):
        load_text(content)


def test_a_location_is_dotted_with_list_indexes_and_without_control_characters() -> None:
    assert dotted(("retention", "overrides", 0, "hours\n")) == "retention.overrides[0].hours\\x0a"
