"""The prose checks find long sentences in what people write, and only there."""

from __future__ import annotations

import pytest

from tools.prose import findings, too_long

LONG = " ".join(["word"] * 26) + "."


@pytest.mark.parametrize("markdown", [LONG, f"- {LONG}", f"1. Short.\n2. {LONG}", f"Short: {LONG}"])
def test_a_sentence_of_more_than_25_words_is_found(markdown: str) -> None:
    assert len(list(too_long("page.md", markdown, 100))) == 1


@pytest.mark.parametrize(
    "markdown",
    [
        f"# {LONG}",
        f"```text\n{LONG}\n```",
        f"| {LONG} |",
        f"<!-- [[[cog x ]]] -->\n{LONG}\n<!-- [[[end]]] -->",
        f"[page]({'x/' * 30}page.md) has it.",
        f"{'word ' * 13}. {'word ' * 13}.",
    ],
)
def test_code_tables_generated_parts_and_addresses_are_not_counted(markdown: str) -> None:
    assert list(too_long("page.md", markdown, 100)) == []


def test_a_document_of_long_sentences_is_found_by_its_mean() -> None:
    markdown = f"{'word ' * 16}word. {'word ' * 13}word."
    assert list(too_long("page.md", markdown, 17)) == []
    assert len(list(too_long("page.md", markdown, 15))) == 1


def test_all_documents_are_in_plain_english() -> None:
    assert list(findings()) == []
