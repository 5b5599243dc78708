"""``python -m benchmarks``: what the README's figures come from, and whether the targets are met.

All of it takes about ten minutes on two cores; ``--only`` chooses parts, ``--quick`` tries them at small
size, and ``--large`` adds the sizes that take several minutes more.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.contests import (
    BESIDE_CLIENTS,
    CLEAN,
    CLEAN_16,
    CLIENTS,
    CONTENDERS,
    DAEMON,
    EEMT,
    FOUR_RM,
    RM,
    SIXTEEN_RM,
    Contender,
    contest,
)
from benchmarks.filesystems import Filesystem, can_mount, disk, memory
from benchmarks.measures import (
    Measure,
    plan_seconds,
    seconds_and_peak_mb,
    seconds_and_waits,
    start_cpu_seconds,
)
from benchmarks.report import FIGURES, Figures, Target
from benchmarks.stores import Shape

_BIG_JOBS = Shape(jobs=40, files=2000, folders=4)
_SMALL_JOBS = Shape(jobs=10_000, files=5, uploads=1)
_MORE_WORKERS = Target(CLEAN_16, 1.0, CLEAN)
_AS_RM = [Target(CLEAN, 1.5, RM), _MORE_WORKERS]


class _Planned(NamedTuple):
    shape: Shape
    place: str
    targets: Sequence[Target]
    others: Sequence[str] = ()  # contenders that no target names

    def contenders(self) -> dict[str, Contender]:
        names = {*self.others, *(name for target in self.targets for name in (target.contender, target.to))}
        return {name: contender for name, contender in CONTENDERS.items() if name in names}


_CONTESTS: Mapping[str, _Planned] = {
    "big-jobs": _Planned(
        _BIG_JOBS,
        "disk",
        [Target(CLEAN, 0.8, FOUR_RM), Target(DAEMON, 1.1, SIXTEEN_RM), _MORE_WORKERS],
        [EEMT, RM],
    ),
    "big-jobs-memory": _Planned(
        _BIG_JOBS, "memory", [Target(DAEMON, 1.3, FOUR_RM), _MORE_WORKERS], [SIXTEEN_RM]
    ),
    "small-jobs": _Planned(
        _SMALL_JOBS, "disk", [Target(CLEAN, 0.5, EEMT), Target(CLEAN, 2.0, FOUR_RM), _MORE_WORKERS], [DAEMON]
    ),
    "small-jobs-alone": _Planned(Shape(jobs=10_000, files=5), "disk", [_MORE_WORKERS], [FOUR_RM]),
    "deep": _Planned(Shape(jobs=1, files=20_000, folders=400, is_deep=True), "memory", _AS_RM),
    "links": _Planned(Shape(jobs=10, files=8000, folders=4, links=8), "memory", _AS_RM),
}


class _Bench:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.rounds = 1 if options.quick else max(1, options.rounds)
        where = f"{os.cpu_count()} cores, ext4 images on a disk, tmpfs"
        if not can_mount(folder):
            where = f"{os.cpu_count()} cores, folders instead of fresh filesystems"
        machine = f"{where}, Linux {os.uname().release}, Python {platform.python_version()}"
        self.figures = Figures(machine, self.rounds)
        self.targets: dict[str, Sequence[Target]] = {}

    def contest(self, name: str) -> None:
        planned = _CONTESTS[name]
        with self._filesystem(planned.shape, planned.place) as (filesystem, title):
            self.figures.contests.append(contest(title, filesystem, planned.contenders(), self.rounds))
            self.targets[title] = planned.targets

    def clients(self) -> None:
        with self._filesystem(_BIG_JOBS) as (filesystem, title):
            # Three pairs say little about some per cent.
            result = contest(
                title, filesystem, CLIENTS, self.rounds if self.options.quick else 2 * self.rounds
            )
            pairs = zip(result.seconds[BESIDE_CLIENTS], result.seconds[DAEMON], strict=True)
            self._add(f"{title}, {BESIDE_CLIENTS}", "of the daemon alone", [a / b for a, b in pairs], 1.05)

    def plan(self) -> None:
        with self._filesystem(Shape(jobs=1000, files=0, uploads=100)) as (filesystem, title):
            dry_runs, plans = plan_seconds(filesystem, self.rounds)
            self._add(f"{title}, dry run", "s", dry_runs, 2)
            self._add(f"{title}, plan over HTTP", "s", plans, 2)

    def rows(self) -> None:
        with self._filesystem(Shape(jobs=10_000, files=3, live_rows=990_000)) as (filesystem, title):
            seconds, waits = seconds_and_waits(filesystem, self.rounds)
            self._add(title, "s", seconds, 4)
            self._add(f"{title}, 99 % of a web application's writes wait at most", "ms", waits, 50)

    def start(self) -> None:
        with self._filesystem(Shape(jobs=0, files=0, live_rows=1000)) as (filesystem, title):
            self._add(
                f"{title}, nothing due", "s of CPU time", start_cpu_seconds(filesystem, self.rounds), 0.25
            )

    def large(self) -> None:
        with self._filesystem(_SMALL_JOBS) as (filesystem, _):
            base, _ = seconds_and_peak_mb(filesystem)
        with self._filesystem(replace(_SMALL_JOBS, jobs=10 * _SMALL_JOBS.jobs)) as (filesystem, title):
            seconds, peak_mb = seconds_and_peak_mb(filesystem)
        self._add(title, "times the seconds of a tenth", [seconds / base], 11)
        self._add(f"{title}, memory of all processes", "MB", [peak_mb], 150)

    @contextmanager
    def _filesystem(self, shape: Shape, place: str = "disk") -> Iterator[tuple[Filesystem, str]]:
        shape = shape.small() if self.options.quick else shape
        title = f"{shape}, in memory" if place == "memory" else str(shape)
        began = time.monotonic()
        with (memory if place == "memory" else disk)(self.folder, shape.build) as filesystem:
            yield filesystem, title
        print(f"{time.monotonic() - began:6.1f} s for {title}", file=sys.stderr)

    def _add(self, title: str, unit: str, values: Sequence[float], most: float) -> None:
        self.figures.measures.append(Measure(title, unit, values, most))


def main() -> None:
    """Measure, print the table and the verdicts, and write the figures."""
    parts: dict[str, Callable[[_Bench], None]] = {
        **{name: partial(_Bench.contest, name=name) for name in _CONTESTS},
        "plan": _Bench.plan,
        "rows": _Bench.rows,
        "clients": _Bench.clients,
        "start": _Bench.start,
        "large": _Bench.large,
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure whole cleanup runs.")
    parser.add_argument("--only", nargs="+", choices=parts, help="which parts")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    parser.add_argument("--quick", action="store_true", help="small, one round, no targets: does it work?")
    parser.add_argument("--large", action="store_true", help="also 100,000 jobs")
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir(), help="on which disk")
    parser.add_argument("--readme", action="store_true", help="write the figures into README.md")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parent / "results",
        help="where all figures are written",
    )
    options = parser.parse_args()
    if options.readme and (options.quick or options.only):
        parser.error("README.md shows a whole bench, without --quick and --only")
    # A user's program is compiled once; with this variable, each start would compile all of it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    only = options.only or [name for name in parts if name != "large" or options.large]
    with tempfile.TemporaryDirectory(prefix="eemtcleanupd-bench-", dir=options.folder) as folder:
        bench = _Bench(options, Path(folder))
        try:
            for name in only:
                parts[name](bench)
        finally:  # what was measured is not lost by what came after
            bench.figures.write(options.results / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.json")
    print(bench.figures.markdown())
    if not options.quick:
        print("", *bench.figures.verdicts(bench.targets), sep="\n")
    if options.readme:
        bench.figures.write(FIGURES)
        subprocess.run([sys.executable, "-m", "tools.reference"], cwd=FIGURES.parents[1], check=True)


if __name__ == "__main__":
    main()
