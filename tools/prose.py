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
# Documents, and how many words a sentence of their paragraphs has at most on average.
_MEAN_WORDS = {
    "README.md": 16,
    "docs/how-to/*.md": 16,
    "docs/*/*.md": 20,
    "*.md": 20,
}
_MOST_WORDS = 25
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


def findings() -> Iterator[str]:
    """Yield ``FILE:LINE: phrase: better`` for each phrase, and what is too long in documents."""
    for path in _files():
        name = path.relative_to(_PROJECT)
        if name == Path("tools/prose.py"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for phrase, better in _PHRASES.items():
                if match := re.search(phrase, line, re.IGNORECASE):
                    yield f"{name}:{number}: {match[0]!r}: better: {better}"
    for document, most in _documents().items():
        yield from too_long(document, (_PROJECT / document).read_text("utf-8"), most)


def _files() -> Iterator[Path]:
    for folder in _CODE:
        yield from (path for path in sorted((_PROJECT / folder).rglob("*")) if path.suffix in _SUFFIXES)
    yield from (_PROJECT / name for name in _documents())


def _documents() -> dict[str, int]:
    documents: dict[str, int] = {}
    for pattern, most in _MEAN_WORDS.items():
        for path in sorted(_PROJECT.glob(pattern)):
            documents.setdefault(str(path.relative_to(_PROJECT)), most)
    return documents


def too_long(name: str, markdown: str, most_on_average: int) -> Iterator[str]:
    """Yield each sentence of a document that is too long, and its mean if that is too high."""
    prose, items = _sentences(markdown)
    for sentence in (*prose, *items):
        if len(sentence.split()) > _MOST_WORDS:
            yield f"{name}: {len(sentence.split())} words: {sentence}"
    mean = sum(len(sentence.split()) for sentence in prose) / max(len(prose), 1)
    if mean >= most_on_average:
        yield f"{name}: {mean:.1f} words in a sentence on average, and should be below {most_on_average}"


def _sentences(markdown: str) -> tuple[list[str], list[str]]:
    """Return the sentences of paragraphs and of list items, without tables, headings, code, cog parts."""
    text = re.sub(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->|```.*?```", "", markdown, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)  # the text of links
    text = re.sub(r"^(\s*)(?=[-*] |\d+\. )", r"\n\1", text, flags=re.MULTILINE)
    prose: list[str] = []
    items: list[str] = []
    for part in re.split(r"\n\s*\n", text):
        if re.match(r"\s*(?:[|#<>]|!\[)", part):
            continue
        marker = re.match(r"\s*(?:[-*]|\d+\.)\s+", part)
        sentences = re.split(r"(?<=[.?!])\s+", " ".join(part[marker.end() if marker else 0 :].split()))
        (items if marker else prose).extend(sentence for sentence in sentences if sentence)
    return prose, items


def main() -> int:
    """Print the findings; return 1 if there are any."""
    found = list(findings())
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
