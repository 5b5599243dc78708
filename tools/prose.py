"""Check the prose of the project for phrases and sentences that are hard to read: ``python -m tools.prose``.

``make check`` runs it beside codespell, which knows single words only (``tools/plain_english.txt``).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

_PROJECT = Path(__file__).parents[1]
_CODE = ("eemtcleanupd", "etc", "packaging", "scripts", "tools")
_DOCUMENTS = ("ARCHITECTURE.md", "CONTRIBUTING.md")
_SUFFIXES = {".py", ".html", ".js", ".yaml", ".service", ".timer", ".sh", ".8", ".mk", ".md"}
_PHRASES = {
    r"\bfor ever\b": "permanently",
    r"\bmay not be\b": "cannot be, is not",
    r"\bgoes on\b": "continues",
    r"\bis no more\b": "was removed",
    r"\blet go of\b": "release",
    r"\bthe user's document\b": "the documentation page",
    r"\bof ours\b": "of eemtcleanupd",
    # "tell who asks", "show what is due": a relative clause without a noun
    r"\b(?:tell|say|show|take)s? (?:who|what) (?:is|was|asks|may|has)\b": "name the noun",
}
_MEAN_WORDS = 20


def findings() -> Iterator[str]:
    """Yield ``FILE:LINE: phrase: better`` for each phrase, and documents whose mean sentence is too long."""
    for path in _files():
        name = path.relative_to(_PROJECT)
        if name == Path("tools/prose.py"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for phrase, better in _PHRASES.items():
                if match := re.search(phrase, line, re.IGNORECASE):
                    yield f"{name}:{number}: {match[0]!r}: better: {better}"
    for document in _DOCUMENTS:
        lengths = [len(sentence.split()) for sentence in _sentences((_PROJECT / document).read_text("utf-8"))]
        if lengths and sum(lengths) / len(lengths) > _MEAN_WORDS:
            yield f"{document}: sentences have {sum(lengths) / len(lengths):.1f} words on average"


def _files() -> Iterator[Path]:
    for folder in _CODE:
        yield from (path for path in sorted((_PROJECT / folder).rglob("*")) if path.suffix in _SUFFIXES)
    yield from (_PROJECT / name for name in _DOCUMENTS)


def _sentences(markdown: str) -> list[str]:
    """Return the sentences of a document's paragraphs, without tables, lists, headings and code."""
    text = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    paragraphs = re.split(r"\n\s*\n", text)
    prose = (part.replace("\n", " ") for part in paragraphs if not re.match(r"\s*(?:[|#<*>-]|\d+\.)", part))
    return [sentence for part in prose for sentence in re.split(r"(?<=[.:])\s+", part) if sentence.strip()]


def main() -> int:
    """Print the findings; return 1 if there are any."""
    found = list(findings())
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
