"""The sample configuration and its JSON Schema in etc/."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from eemtcleanupd.config.yaml_reader import Loc, read_document
from eemtcleanupd.plugins import load, schema

FIELDS = schema().fields

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "etc" / "cleanup_config.yaml"
SCHEMA = ROOT / "etc" / "cleanup_config.schema.json"
EXAMPLE = re.compile(r"^( *)#(\w+:)", re.MULTILINE)
DOCUMENT = ROOT / "tests" / "data" / "cleanup_config_document.yaml"


def test_the_sample_loads_with_the_default_values(tmp_path: Path) -> None:
    copy = tmp_path / "cleanup_config.yaml"
    copy.write_bytes(SAMPLE.read_bytes())
    shown = load(copy, environ={}, cwd=tmp_path)
    assert shown.config.model_dump() == load(None, environ={}, cwd=tmp_path).config.model_dump()
    assert shown.warnings == ()


def test_the_sample_has_every_key(tmp_path: Path) -> None:
    copy = tmp_path / "cleanup_config.yaml"
    copy.write_text(EXAMPLE.sub(r"\1\2", SAMPLE.read_text()))
    document = read_document(copy)
    assert document.problems == []
    assert set(FIELDS) - {".".join(map(str, loc)) for loc in document.keys} == set()


def test_the_sample_explains_every_key_or_its_block() -> None:
    lines = SAMPLE.read_text().splitlines()
    document = read_document(SAMPLE)

    def is_explained(loc: Loc) -> bool:
        return lines[document.keys[loc][0] - 2].strip().startswith("#")

    keys = [loc for loc in document.keys if ".".join(map(str, loc)) in FIELDS]
    assert [loc for loc in keys if not is_explained(loc) and not is_explained(loc[:-1])] == []


def test_no_line_of_the_sample_is_longer_than_110_columns() -> None:
    assert [line for line in SAMPLE.read_text().splitlines() if len(line) > 110] == []


def test_make_install_moves_every_default_path_to_srv() -> None:
    relative = yaml.safe_load(SAMPLE.read_text())
    installed = yaml.safe_load(SAMPLE.read_text().replace(": ./", ": /srv/eemt/"))
    for block, key in (("paths", "database"), ("paths", "results"), ("backup", "path"), ("logging", "file")):
        assert installed[block][key] == relative[block][key].replace("./", "/srv/eemt/")


@pytest.mark.xdist_group("jsonschema")
def test_the_sample_and_the_documented_example_match_the_json_schema() -> None:
    import jsonschema  # slow

    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for file in (SAMPLE, DOCUMENT):
        jsonschema.validate(yaml.safe_load(file.read_text()), schema)
