"""The documentation matches the program."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from eemtcleanupd.cli.main import COMMANDS
from eemtcleanupd.store.tables import METADATA

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_section_with_its_generated_options(name: str) -> None:
    section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", REFERENCE, re.MULTILINE | re.DOTALL)
    assert section, f"docs/reference/commands.md has no section {name}"
    block = f'<!-- [[[cog cog.outl(reference.command("{name}")) ]]] -->\n'
    assert block in section[1], (
        f"Add this block to the section, and run make reference:\n{block}<!-- [[[end]]] -->"
    )


def test_every_table_of_the_ledger_is_in_the_architecture() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for table in METADATA.tables:
        assert f"`{table}`" in architecture


DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> Iterator[tuple[Path, str, str, str]]:
    """Yield the document, text, target and anchor of each link within the repository."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for found in re.finditer(r"\[([^\[\]]*)\]\((?!\w+:)([^)#]*)#?([^)]*)\)", text):
            yield document, found[1], found[2], found[3]


def test_links_between_documents_have_a_target_in_the_repository() -> None:
    for document, _, target, anchor in links():
        file = document.parent / target if target else document
        assert file.exists(), f"{document.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{document.name}: {target}#{anchor}"


def test_links_to_a_page_name_the_page_and_not_its_file() -> None:
    assert [f"{document.name}: {text}" for document, text, *_ in links() if text.endswith(".md")] == []


def test_the_documented_notifier_is_the_example() -> None:
    shown = (ROOT / "docs" / "how-to" / "write-a-notifier.md").read_text(encoding="utf-8")
    for name in ("eemtcleanupd_ntfy.py", "pyproject.toml"):
        assert (ROOT / "examples" / "eemtcleanupd-ntfy" / name).read_text(encoding="utf-8").rstrip() in shown


def test_every_key_of_all_notifiers_is_explained() -> None:
    from eemtcleanupd.config.plugin_settings import NotifierSettings

    channels = (ROOT / "docs" / "how-to" / "notifications.md").read_text(encoding="utf-8")
    for key in NotifierSettings.model_fields:
        assert f"`{key}`" in channels


def audit_actions() -> Iterator[str]:
    """Yield the actions that the code writes into the audit log, where it names them as literals."""
    writers = {"audit", "_audit", "_try_audit", "write_audit", "record", "_own_entry", "AuditEntry"}
    for file in (ROOT / "eemtcleanupd").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            called = call.args[0] if ast.unparse(call.func) == "partial" else call.func
            name = ast.unparse(called).rpartition(".")[2]
            for value in call.args[2:3] if name == "AuditEntry" else call.args:
                if name in writers and isinstance(value, ast.Constant):
                    yield str(value.value)


def test_every_action_of_the_audit_log_is_in_its_table() -> None:
    channels = (ROOT / "docs" / "how-to" / "notifications.md").read_text(encoding="utf-8")
    table = channels.partition("| action | when |")[2].partition("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines() if row]
    documented = set(re.findall(r"`(\w+)`", " ".join(row[1] for row in rows)))
    actions = set(audit_actions())
    assert {"hold", "restored", "torn_line", "database_prepared"} < actions
    assert actions - documented == set()


def test_each_rule_of_security_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    tests = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    assert named - set(re.findall(r"def (test_\w+)", tests)) == set()
    assert len(named) > 50
