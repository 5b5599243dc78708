"""Writes docs/reference/licences.md from the SBOM of `make dist`, and refuses unreviewed licences.

The page has no versions, and one name for all spellings of a licence. It changes only when a dependency is
added or removed, or changes its terms.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).parents[1] / "docs/reference/licences.md"
HEAD: Final = """# Licences

eemtcleanupd is under the Apache License 2.0. This table lists its dependencies, including those of all
extras, with the licences that their authors declare. eemtcleanupd uses the packages as published. The Debian
package contains unchanged copies, each with its licence. The licences below allow both.

`make licences` generates this page. It fails if `tools/licences.py` does not know a licence.

| package | licence |
|---|---|
"""

# Licences that allow use and distribution beside our code, by the name in the table.
ALLOWED: Final = {
    "Apache-2.0": {"Apache-2.0", "License :: OSI Approved :: Apache Software License"},
    "BSD": {"0BSD", "BSD-2-Clause", "BSD-3-Clause", "License :: OSI Approved :: BSD License"},
    "CC0-1.0": {"CC0-1.0"},
    "HPND": {"HPND"},
    "ISC": {"ISC", "License :: OSI Approved :: ISC License (ISCL)"},
    # A separate library that users can replace, as section 4 requires.
    "LGPL-3.0": {"LGPL-3.0-only", "LGPL-3.0-or-later"},
    "MIT": {"MIT", "MIT-0", "MIT-CMU", "License :: OSI Approved :: MIT License"},
    # Copyleft applies to its own files only. They are unchanged, and are their own source.
    "MPL-2.0": {"MPL-2.0", "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"},
    "PSF-2.0": {"PSF-2.0", "Python-2.0", "License :: OSI Approved :: Python Software Foundation License"},
    "Unlicense": {"Unlicense"},
    "Zlib": {"Zlib"},
}
# Packages without a licence in their metadata, and the licence in their LICENSE file.
REVIEWED: Final = {"partd": "BSD"}
# Classifiers without a specific licence.
UNSPECIFIC: Final = {"License :: OSI Approved", "License :: DFSG approved"}


def licences(component: dict[str, Any]) -> list[str]:
    """Return the names of a component's licences. All must be allowed, even if users can choose one.

    Raises:
        ValueError: the component declares no licence, or one that is not allowed.
    """
    declared: set[str] = set()
    for entry in component.get("licenses", ()):
        if "expression" in entry:
            declared |= set(re.split(r"[()\s]+(?:AND|OR)[()\s]+", entry["expression"].strip("() ")))
        else:
            declared.add(entry["license"].get("id") or entry["license"]["name"])
    declared -= UNSPECIFIC
    names = {name for name, spellings in ALLOWED.items() if declared & spellings}
    if not declared and component["name"] in REVIEWED:
        names = {REVIEWED[component["name"]]}
    unknown = declared - set().union(*ALLOWED.values())
    if unknown or not names:
        raise ValueError(
            f"{component['name']}: {', '.join(sorted(unknown)) or 'no licence'} is not allowed."
            " Review the licence and add it to tools/licences.py, or remove the package."
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
