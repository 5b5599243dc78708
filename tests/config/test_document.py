"""Reading the file itself: places, keys that stand twice, what YAML 1.1 makes of things, hostile files."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from eemtcleanupd.config.yaml_reader import dotted, read_document
from eemtcleanupd.errors import ConfigError
from tests.config.conftest import LoadText, RefuseText


def test_keys_and_values_know_where_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a:\n  - b: 1\n    c:   two\n")
    document = read_document(file)
    assert document.data == {"a": [{"b": 1, "c": "two"}]}
    assert document.place(("a", 0, "c")) == f"{file}:3:10"
    assert document.place(("a", 0, "c"), of_key=True) == f"{file}:3:5"
    assert document.place(("a", 0, "missing")) == f"{file}:2:5"


def test_a_key_that_stands_twice_is_told_with_both_lines(refuse_text: RefuseText) -> None:
    message = refuse_text(
        "dry_run: true\nretention:\n  failed_jobs: {hours: 1}\n  failed_jobs: {hours: 900}\n"
    )
    assert (
        message
        == "FILE:4:3: retention.failed_jobs: this key is in line 3 already and may stand here only once"
    )


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("retention: {failed_jobs: {hours: 12:30}}", "FILE:1:34", "base 60, 750"),
        ("retention: {failed_jobs: {hours: 12:30:00}}", "FILE:1:34", "base 60, 45000"),
        ("performance: {max_workers: 010}", "FILE:1:28", "octal number, 8; write a plain number such as 10"),
        ("retention: {failed_jobs: {hours: 1e3}}", "FILE:1:34", "YAML takes it for text: write 1000"),
        ('retention: {failed_jobs: {hours: "12"}}', "FILE:1:34", "take the quotes away"),
        (
            "notifications: {email: {smtp_server: no}}",
            "FILE:1:38",
            "found no, allowed is text; YAML reads it as false",
        ),
        (
            "notifications: {email: {smtp_server: 2024-01-01}}",
            "FILE:1:38",
            "reads it as a date: put it in quotes",
        ),
        ("notifications: {email: {smtp_server: 2024-13-45}}", "FILE:1:38", "put a text in quotes"),
        ("plugins: [12]", "FILE:1:11", "YAML reads it as a number: put it in quotes"),
        ('dry_run: "yes"', "FILE:1:10", "allowed is true or false; take the quotes away"),
        ("schedule: {cron: @daily}", "FILE:1:18", "is put in quotes"),
        ("retention: {log_patterns: [*.log]}", "FILE:1:29", "begins with * or & is put in quotes"),
        ("retention:\n\tfailed_jobs:\n", "FILE:2:1", "indent with spaces"),
        ("retention: failed_jobs: 3", "FILE:1:23", "check the indentation"),
        ("dry_run: [true", "FILE:2:1", "not valid YAML"),
        ("dry_run: true\n---\ndry_run: false\n", "FILE:2:1", "not valid YAML"),
        ("- retention", "FILE:1:1", "must be a mapping"),
        ("just words", "FILE:1:1", "must be a mapping"),
        ("? [a, b]\n: 1\n", "FILE:1:3", "a key is a single word"),
        ("retention: !!python/object:os.system {}", "FILE:1:12", "a tag"),
        ("retention: {<<: {hours: 1}}", "FILE:1:13", "unknown key"),
    ],
)
def test_what_yaml_makes_of_things_is_explained(
    refuse_text: RefuseText, text: str, place: str, words: str
) -> None:
    message = refuse_text(text)
    assert message.startswith(f"{place}: ")
    assert words in message


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "\ufeff"])
def test_an_empty_file_means_the_defaults(load_text: LoadText, text: str) -> None:
    assert set(load_text(text).origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"dry_run: \xff", "is not UTF-8 text (byte 10)"),
        (b"dry_run: true \x00", "not valid YAML"),
        (b"#" * 1_000_001, "larger than 1 MB"),
        (b"[" * 40_000, "nested more than"),
        (b"a: &a [*a]", "has too many values"),
        (
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(
                b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (n, n, *[n - 1] * 8) for n in range(98, 108)
            ),
            "has too many values",
        ),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_at_once(
    refuse_text: RefuseText, content: bytes, words: str
) -> None:
    started = time.process_time()
    assert words in refuse_text(content)
    assert time.process_time() - started < 2


def test_a_folder_or_an_unreadable_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, words in (("", "Is a directory"), ("absent", "No such file"), ("loop", "symbolic links")):
        with pytest.raises(ConfigError, match=words):
            read_document(tmp_path / name)


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
def test_no_content_whatever_ends_in_anything_but_a_configuration_error(
    load_text: LoadText, text: str | bytes
) -> None:
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    with contextlib.suppress(ConfigError):
        load_text(content)


def test_a_way_to_a_value_is_written_as_people_do() -> None:
    assert dotted(("retention", "overrides", 0, "hours\n")) == "retention.overrides[0].hours\\x0a"
