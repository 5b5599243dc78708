"""``python -m benchmarks``: whole cleanup runs beside rm, shutil and pathlib, on the same trees, in turn.

All contenders of a round work on trees that were built the same way just before, in an order that changes
from round to round; the ratios are medians of the rounds' own ratios, so that a machine that is busier in
one round than in another does not decide.  The stores are built in the folder for temporary files (set
``TMPDIR`` to measure another disk).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.stores import Shape, build_expired, build_idle

OURS = "clean --workers 4"
RM = "rm -rf"
PARALLEL_RM = "four rm -rf in parallel"
SHUTIL = "shutil.rmtree"
PATHLIB = "sizes by pathlib, then rmtree"

_KIB_PER_MB = 1000 / 1.024
_CLEAN = (sys.executable, "-m", "eemtcleanupd", "clean")


def _clean(store: Path) -> None:
    subprocess.run([*_CLEAN, "--workers", "4"], cwd=store, check=True, stdout=subprocess.DEVNULL)
    left = list((store / "results").glob("job-*"))
    if left:
        raise SystemExit(f"not cleaned: {left[0]}")


def _rm(store: Path) -> None:
    subprocess.run(["rm", "-rf", *(store / "results").iterdir()], check=True)


def _parallel_rm(store: Path) -> None:
    jobs = sorted((store / "results").iterdir())
    for process in [subprocess.Popen(["rm", "-rf", *jobs[first::4]]) for first in range(4)]:
        process.wait()


def _shutil(store: Path) -> None:
    for job in (store / "results").iterdir():
        shutil.rmtree(job)


def _pathlib(store: Path) -> None:
    for job in (store / "results").iterdir():
        sum(path.stat().st_size for path in job.rglob("*") if path.is_file())
        shutil.rmtree(job)


CONTENDERS: Mapping[str, Callable[[Path], None]] = {
    OURS: _clean,
    PARALLEL_RM: _parallel_rm,
    RM: _rm,
    SHUTIL: _shutil,
    PATHLIB: _pathlib,
}


@dataclass(frozen=True, slots=True)
class Target:
    """What is hoped for: our time at most ``ratio`` of another contender's."""

    contender: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Contest:
    """The seconds that each contender took on one shape, round by round."""

    shape: Shape
    seconds: Mapping[str, Sequence[float]]

    def ratio(self, contender: str, to: str) -> float:
        """Return the median over the rounds of one contender's time by another's."""
        pairs = zip(self.seconds[contender], self.seconds[to], strict=True)
        return statistics.median(one / other for one, other in pairs)


@dataclass(frozen=True, slots=True)
class IdleRun:
    """What a run with nothing due cost: user and system seconds of CPU, and the largest resident memory."""

    cpu_seconds: float
    peak_mb: float


def contest(shape: Shape, rounds: int, store: Path, console: Console) -> Contest:
    """Let all contenders delete the same trees, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    names = list(CONTENDERS)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            with console.status(f"{shape}, round {number + 1} of {rounds}: {name}"):
                build_expired(store, shape)
                began = time.perf_counter()
                CONTENDERS[name](store)
                seconds[name].append(time.perf_counter() - began)
    return Contest(shape, seconds)


def idle_run(store: Path) -> IdleRun:
    """Run on a store in which nothing is due."""
    with subprocess.Popen(_CLEAN, cwd=store, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a run with nothing due ended with {process.returncode}")
    return IdleRun(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / _KIB_PER_MB)


def _verdict(figure: float, target: float) -> str:
    return "[green]met[/]" if figure <= target else "[red]not met[/]"


def show_contest(result: Contest, targets: Sequence[Target], console: Console) -> None:
    """Print one shape's table and its targets."""
    rounds = len(result.seconds[OURS])
    table = Table(title=f"{result.shape} ({rounds} rounds)", title_justify="left")
    table.add_column("contender", no_wrap=True)
    for column in ("median", "range", "to rm -rf", "to four rm"):
        table.add_column(column, justify="right")
    for name, seconds in result.seconds.items():
        median, spread = statistics.median(seconds), f"{min(seconds):.2f}-{max(seconds):.2f}"
        ratios = (result.ratio(name, RM), result.ratio(name, PARALLEL_RM))
        table.add_row(name, f"{median:.2f} s", spread, *(f"{each:.2f}" for each in ratios))
    console.print(table)
    for target in targets:
        ratio = result.ratio(OURS, target.contender)
        console.print(
            f"  target: at most {target.ratio:.2f} of {target.contender}; measured {ratio:.2f}: "
            f"{_verdict(ratio, target.ratio)}"
        )
    console.print()


def show_idle(rows: int, runs: Sequence[IdleRun], targets: IdleRun, console: Console) -> None:
    """Print what a run with nothing due costs, and its targets."""
    table = Table(title=f"{rows:,} rows, nothing due ({len(runs)} runs)", title_justify="left")
    for column in ("", "median", "least", "most", "target", ""):
        table.add_column(column, justify="right" if column else "left")
    for label, unit, figures, target in (
        ("CPU time", "s", [run.cpu_seconds for run in runs], targets.cpu_seconds),
        ("peak memory", "MB", [run.peak_mb for run in runs], targets.peak_mb),
    ):
        median = statistics.median(figures)
        cells = (median, min(figures), max(figures), target)
        table.add_row(label, *(f"{each:.2f} {unit}" for each in cells), _verdict(median, target))
    console.print(table)


def main() -> None:
    """Measure, print the tables, and write the figures for programs where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure whole cleanup runs.")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, one round: does it work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all single figures there")
    options = parser.parse_args()
    scale, rounds = (10, 1) if options.quick else (1, max(1, options.rounds))
    console = Console()
    many = Shape(jobs=40, files=2000 // scale, folders=4)
    big = Shape(jobs=1, files=80_000 // scale, folders=40)
    rows = 1_000_000 // scale
    with tempfile.TemporaryDirectory(prefix="eemtcleanupd-bench-") as folder:
        store = Path(folder) / "store"
        contests = []
        for shape, targets in (
            (many, [Target(PARALLEL_RM, 1.0), Target(RM, 0.45), Target(PATHLIB, 0.4)]),
            (big, [Target(RM, 0.5)]),
        ):
            contests.append(contest(shape, rounds, store, console))
            show_contest(contests[-1], [] if options.quick else targets, console)
        with console.status(f"{rows:,} rows with nothing due"):
            build_idle(store, rows)
            idle = [idle_run(store) for _ in range(rounds)]
        show_idle(rows, idle, IdleRun(cpu_seconds=0.5, peak_mb=100.0), console)
    if options.json is not None:
        figures = {
            "contests": [asdict(each) for each in contests],
            "idle": {"rows": rows, "runs": [asdict(each) for each in idle]},
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


main()
