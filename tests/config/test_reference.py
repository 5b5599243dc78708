"""What people read is true: etc/cleanup_config.yaml and its JSON Schema."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import yaml

from eemtcleanupd.config.yaml_reader import Loc, read_document
from eemtcleanupd.plugins import load, schema

FIELDS = schema().fields

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "etc" / "cleanup_config.yaml"
SCHEMA = ROOT / "etc" / "cleanup_config.schema.json"
EXAMPLE = re.compile(r"^( *)#(\w+:)", re.MULTILINE)
DOCUMENT = ROOT / "tests" / "data" / "cleanup_config_document.yaml"


def test_the_reference_shows_the_defaults(tmp_path: Path) -> None:
    copy = tmp_path / "cleanup_config.yaml"
    copy.write_bytes(REFERENCE.read_bytes())
    shown = load(copy, environ={}, cwd=tmp_path)
    assert shown.config == load(None, environ={}, cwd=tmp_path).config
    assert shown.warnings == ()


def test_the_reference_has_every_key(tmp_path: Path) -> None:
    copy = tmp_path / "cleanup_config.yaml"
    copy.write_text(EXAMPLE.sub(r"\1\2", REFERENCE.read_text()))
    document = read_document(copy)
    assert document.problems == []
    assert set(FIELDS) - {".".join(map(str, loc)) for loc in document.keys} == set()


def test_the_reference_explains_every_key_or_its_block() -> None:
    lines = REFERENCE.read_text().splitlines()
    document = read_document(REFERENCE)

    def is_explained(loc: Loc) -> bool:
        return lines[document.keys[loc][0] - 2].strip().startswith("#")

    keys = [loc for loc in document.keys if ".".join(map(str, loc)) in FIELDS]
    assert [loc for loc in keys if not is_explained(loc) and not is_explained(loc[:-1])] == []


def test_the_json_schema_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == schema().json_schema(), (
        "run: eemtcleanupd check --schema > etc/cleanup_config.schema.json"
    )


def test_reference_and_document_validate_against_the_json_schema() -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for file in (REFERENCE, DOCUMENT):
        jsonschema.validate(yaml.safe_load(file.read_text()), schema)
