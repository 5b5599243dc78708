"""``python -m benchmarks``: what the README's figures come from, and whether the targets are met.

All of it takes hours; ``--only`` chooses parts, ``--quick`` tries them at small size.  Stores are built in
each ``--folder``, so that one run measures several filesystems.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.contests import (
    AUTO,
    FOUR_RM,
    PATHLIB,
    RM,
    SIXTEEN_RM,
    Contest,
    Target,
    clean_with,
    contest,
)
from benchmarks.growth import (
    Growth,
    due_rows,
    files_growth,
    has_strace,
    rows_growth,
    run,
    system_calls,
)
from benchmarks.report import Report, draw
from benchmarks.stores import Shape, build_rows

_OURS = clean_with(4)
_FEW_WORKERS: Sequence[int | str] = (4, "auto")
_ALL_WORKERS: Sequence[int | str] = (1, 2, 4, 8, 16, "auto")

_SHAPES = {
    "many": Shape(jobs=40, files=2000, folders=4),
    "one": Shape(jobs=1, files=80_000, folders=40),
    "large": Shape(jobs=8, files=4, folders=1, file_bytes=256 << 20),
    "deep": Shape(jobs=1, files=20_000, folders=400, is_deep=True),
    "wide": Shape(jobs=1, files=1_000_000, folders=1),
    "links": Shape(jobs=10, files=8000, folders=4, links=8),
}
_TARGETS = {
    "many": [Target(_OURS, 1.0, FOUR_RM), Target(_OURS, 0.45, RM), Target(_OURS, 0.4, PATHLIB)]
    + [Target(ours, 1.0, SIXTEEN_RM) for ours in (AUTO, clean_with(16))],
    "one": [Target(_OURS, 0.5, RM)],
    "wide": [Target(_OURS, 1.1, RM)],
}
_PEAK_MB = {"wide": 120.0}


class _Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.console = Console(width=max(120, Console().width))  # a table is no use with cut figures
        self.report = Report(self.console, judge=not options.quick)
        self.rounds = 1 if options.quick else max(1, options.rounds)
        self.contests: list[Contest] = []
        self.growths: list[Growth] = []
        self.figures: dict[str, object] = {}

    def contest(self, name: str, folder: Path) -> None:
        shape = _SHAPES[name]
        if self.options.quick:
            shape = Shape(
                shape.jobs,
                max(shape.folders * shape.links, shape.files // 50),
                shape.folders,
                min(shape.file_bytes, 2 << 20),
                shape.is_deep,
                shape.links,
            )
        for cache in self.options.caches:
            is_cold = cache == "cold"
            workers = _ALL_WORKERS if name == "many" else _FEW_WORKERS
            result = contest(shape, self.rounds, folder, workers, self.console, is_cold=is_cold)
            self.contests.append(result)
            # The targets are those of a warm cache on a disk.
            is_judged = not is_cold and result.filesystem != "tmpfs"
            self.report.contest(
                result, _TARGETS.get(name, []) if is_judged else [], _PEAK_MB.get(name) if is_judged else None
            )

    def idle(self, folder: Path) -> None:
        rows = 10_000 if self.options.quick else 1_000_000
        with self.console.status(f"{rows:,} rows, nothing due"):
            build_rows(folder / "store", rows)
            runs = [run(folder / "store") for _ in range(self.rounds)]
        self.report.idle(rows, runs)
        self.figures["idle"] = [asdict(each) for each in runs]

    def due(self, folder: Path) -> None:
        rows, due = (10_000, 500) if self.options.quick else (1_000_000, 10_000)
        with self.console.status(f"{rows:,} rows, {due:,} due"):
            measured = [due_rows(folder / "store", rows, due) for _ in range(self.rounds)]
        self.report.due(rows, due, measured)
        self.figures["due"] = [{**asdict(cost), **asdict(waits)} for cost, waits in measured]

    def growth(self, folder: Path) -> None:
        sizes = [10**power for power in range(3, 5 if self.options.quick else 7)]
        for grow in (files_growth, rows_growth):
            with self.console.status(f"{grow.__name__} to {sizes[-1]:,}"):
                self.growths.append(grow(folder / "store", sizes))
            self.report.growth(self.growths[-1])

    def calls(self, folder: Path) -> None:
        if not has_strace():
            self.console.print("system calls are not counted: there is no strace")
            return
        with self.console.status("system calls per file"):
            per_file = system_calls(folder / "store", 4000 if self.options.quick else 40_000)
        self.report.calls(per_file)
        self.figures["calls_per_file"] = per_file

    def write(self, folder: Path) -> None:
        """Write all single figures and the picture."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
        figures = {
            "cores": os.cpu_count(),
            "kernel": os.uname().release,
            "python": sys.version.split()[0],
            "contests": [asdict(each) for each in self.contests],
            "growth": [asdict(each) for each in self.growths],
            **self.figures,
            "targets": self.report.targets,
        }
        stem.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        draw(self.contests, self.growths, stem.with_suffix(".svg"))
        self.console.print(f"all figures: {stem}.json, {stem.name}.svg")


def main() -> None:
    """Measure, print the tables, and write the figures."""
    parts: dict[str, Callable[[_Bench, Path], None]] = {
        **{name: lambda bench, folder, name=name: bench.contest(name, folder) for name in _SHAPES},  # type: ignore[misc]
        "idle": _Bench.idle,
        "due": _Bench.due,
        "growth": _Bench.growth,
        "calls": _Bench.calls,
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure whole cleanup runs.")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="which parts")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    parser.add_argument("--quick", action="store_true", help="small, one round, no targets: does it work?")
    parser.add_argument(
        "--caches",
        nargs="+",
        choices=["warm", "cold"],
        default=["warm"],
        help="contests with warm caches, cold ones (as root), or both (warm)",
    )
    parser.add_argument(
        "--folder",
        nargs="+",
        type=Path,
        default=[Path(tempfile.gettempdir())],
        help="where, one a filesystem",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parent / "results",
        help="where the figures are written",
    )
    options = parser.parse_args()
    if "cold" in options.caches and os.geteuid() != 0:
        parser.error("cold caches need root")
    bench = _Bench(options)
    try:
        for place in options.folder:
            with tempfile.TemporaryDirectory(prefix="eemtcleanupd-bench-", dir=place) as folder:
                for name in options.only:
                    parts[name](bench, Path(folder))
    finally:  # what was measured is not lost by what came after
        bench.write(options.results)
    bench.report.summary()


if __name__ == "__main__":
    main()
