"""Write docs/licences.md from the SBOM of `make dist`, and refuse a licence that nobody has looked at.

Names and licences, without versions, and one name for all spellings of a licence: the page changes when a
dependency comes or goes or changes its terms, not with every release of one.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).parent / "licences.md"
HEAD: Final = """# Licences

eemtcleanupd is under the Apache License 2.0. These are the packages that it runs with, all extras included,
and the licences that their authors name. They are used as they were published, and the Debian package brings
them along unchanged, each with its licence; the licences below allow both.

`make licences` writes this page; a licence that `docs/make_licences.py` does not know stops it.

| package | licence |
|---|---|
"""

# What may be used and passed on unchanged beside our code, by the name in the table.
ALLOWED: Final = {
    "Apache-2.0": {"Apache-2.0", "License :: OSI Approved :: Apache Software License"},
    "BSD": {"0BSD", "BSD-2-Clause", "BSD-3-Clause", "License :: OSI Approved :: BSD License"},
    "CC0-1.0": {"CC0-1.0"},
    "HPND": {"HPND"},
    "ISC": {"ISC", "License :: OSI Approved :: ISC License (ISCL)"},
    # A library of its own that anybody can replace: what section 4 asks for.
    "LGPL-3.0": {"LGPL-3.0-only", "LGPL-3.0-or-later"},
    "MIT": {"MIT", "MIT-0", "MIT-CMU", "License :: OSI Approved :: MIT License"},
    # Copyleft for its own files, which stay as they are and are their own source.
    "MPL-2.0": {"MPL-2.0", "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"},
    "PSF-2.0": {"PSF-2.0", "Python-2.0", "License :: OSI Approved :: Python Software Foundation License"},
    "Unlicense": {"Unlicense"},
    "Zlib": {"Zlib"},
}
# What names none in its metadata, by what its LICENSE file says.
READ: Final = {"partd": "BSD"}
# Classifiers that name no licence.
EMPTY: Final = {"License :: OSI Approved", "License :: DFSG approved"}


def licences(component: dict[str, Any]) -> list[str]:
    """Return the names of a component's licences; all that are named must be allowed, also of a choice.

    Raises:
        ValueError: it names none, or one that is not allowed.
    """
    spelt: set[str] = set()
    for entry in component.get("licenses", ()):
        if "expression" in entry:
            spelt |= set(re.split(r"[()\s]+(?:AND|OR)[()\s]+", entry["expression"].strip("() ")))
        else:
            spelt.add(entry["license"].get("id") or entry["license"]["name"])
    spelt -= EMPTY
    names = {name for name, spellings in ALLOWED.items() if spelt & spellings}
    if not spelt and component["name"] in READ:
        names = {READ[component["name"]]}
    unknown = spelt - set().union(*ALLOWED.values())
    if unknown or not names:
        raise ValueError(
            f"{component['name']}: {', '.join(sorted(unknown)) or 'no licence'} is not allowed;"
            " look at it, then add it to docs/make_licences.py, or do without the package"
        )
    return sorted(names)


def page(sbom: dict[str, Any]) -> str:
    """Return the page for an SBOM in CycloneDX's JSON."""
    rows = {
        re.sub(r"[-_.]+", "-", component["name"]).lower(): ", ".join(licences(component))
        for component in sbom["components"]
        if component["name"] != "eemtcleanupd"
    }
    return HEAD + "".join(f"| {name} | {rows[name]} |\n" for name in sorted(rows))


if __name__ == "__main__":
    try:
        PAGE.write_text(page(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), encoding="utf-8")
    except ValueError as error:
        sys.exit(f"{error}")
