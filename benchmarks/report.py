"""The figures as a table, for the terminal and for README.md, and their targets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.contests import (
    CLEAN,
    CLEAN_16,
    CONTENDERS,
    DAEMON,
    EEMT,
    FOUR_RM,
    SIXTEEN_RM,
    Contest,
)
from benchmarks.measures import Measure

FIGURES = Path(__file__).parent / "figures.json"
"""What README.md shows: the figures of the last ``python -m benchmarks --readme``."""

_NONE = "-"  # not measured
# The columns with ratios: of which contender, to which.
_RATIOS = ((CLEAN, EEMT), (CLEAN, FOUR_RM), (CLEAN_16, SIXTEEN_RM), (DAEMON, FOUR_RM), (DAEMON, SIXTEEN_RM))


@dataclass(frozen=True, slots=True)
class Target:
    """The most that the ratio of two contenders should be."""

    contender: str
    most: float
    to: str


@dataclass(slots=True)
class Figures:
    """All that one bench measured."""

    machine: str = ""
    rounds: int = 0
    contests: list[Contest] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> Figures:
        """Read what ``write`` wrote."""
        content = json.loads(file.read_text(encoding="utf-8"))
        contests = [Contest(**each) for each in content.pop("contests")]
        measures = [Measure(**each) for each in content.pop("measures")]
        return cls(**content, contests=contests, measures=measures)

    def write(self, file: Path) -> None:
        """Write all single figures."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def markdown(self) -> str:
        """Return a table of the contests, with medians and ratios, and a list of the measures."""
        lines = [f"Medians of {self.rounds} rounds on {self.machine}. Times are in seconds."]
        if self.contests:
            ratios = [f"{ours} to {other}" for ours, other in _RATIOS]
            lines += ["", _row("work", *CONTENDERS, *ratios), "|---|" + "--:|" * len([*CONTENDERS, *ratios])]
        for each in self.contests:
            seconds = [f"{each.median(name):.2f}" if name in each.seconds else _NONE for name in CONTENDERS]
            pairs = [
                f"{each.ratio(*pair):.2f}" if each.seconds.keys() >= set(pair) else _NONE for pair in _RATIOS
            ]
            lines.append(_row(each.title, *seconds, *pairs))
        measures = [f"- {each.title}: {each.median:.3g} {each.unit}" for each in self.measures]
        return "\n".join([*lines, "", *measures])

    def verdicts(self, targets: Mapping[str, Sequence[Target]]) -> Iterator[str]:
        """Yield for each target, by title of the contest, and for each measure whether it is met."""
        for contest in self.contests:
            for each in targets[contest.title]:
                words = f"{contest.title}: {each.contender} to {each.to}"
                yield _verdict(words, contest.ratio(each.contender, each.to), each.most)
        for measure in self.measures:
            yield _verdict(f"{measure.title}: {measure.unit}", measure.median, measure.most)


def readme() -> str:
    """Return the text that README.md shows."""
    if not FIGURES.exists():
        return "This version has not been measured yet."
    return Figures.read(FIGURES).markdown()


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _verdict(words: str, figure: float, most: float) -> str:
    return f"{'met' if figure <= most else 'NOT MET'}: {words}: {figure:.3g}, at most {most:g}"
