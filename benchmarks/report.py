"""The benchmarks' tables, targets and picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.contests import FOUR_RM, RM, SIXTEEN_RM, Contest, Target
from benchmarks.growth import Cost, Growth, Waits


class Report:
    """Prints what is measured, and remembers which targets were met.

    Args:
        console: where to.
        judge: whether the sizes are those that the targets are for.
    """

    def __init__(self, console: Console, *, judge: bool) -> None:
        self._console = console
        self._judge = judge
        self.targets: list[dict[str, object]] = []

    def target(self, words: str, figure: float, most: float) -> None:
        """Say whether a figure is at most what it should be."""
        if not self._judge:
            return
        met = figure <= most
        verdict = "[green]met[/]" if met else "[red]not met[/]"
        self._console.print(f"  target: {words} at most {most:g}; measured {figure:.3g}: {verdict}")
        self.targets.append({"target": words, "most": most, "measured": figure, "met": met})

    def contest(self, result: Contest, targets: Sequence[Target], peak_mb: float | None = None) -> None:
        """Print one shape's table and its targets."""
        rivals = [name for name in (RM, FOUR_RM, SIXTEEN_RM) if name in result.seconds]
        rounds = len(next(iter(result.seconds.values())))
        table = Table(title=f"{result.title} ({rounds} rounds)", title_justify="left")
        table.add_column("contender", no_wrap=True)
        for column in ("median", "range", "files/s", *(f"to {name.split(' -rf')[0]}" for name in rivals)):
            table.add_column(column, justify="right", no_wrap=True)
        for name, seconds in result.seconds.items():
            median, spread = statistics.median(seconds), f"{min(seconds):.2f}-{max(seconds):.2f}"
            rate = f"{result.shape.total_files / median:,.0f}"
            ratios = (f"{result.ratio(name, rival):.2f}" for rival in rivals)
            table.add_row(name, f"{median:.2f} s", spread, rate, *ratios)
        self._console.print(table)
        for each in targets:
            words = f"{result.title}: {each.ours} to {each.contender}"
            self.target(words, result.ratio(each.ours, each.contender), each.ratio)
        if peak_mb is not None:
            self.target(f"{result.title}: MB of memory, all processes", result.peak_mb, peak_mb)
        self._console.print()

    def idle(self, rows: int, runs: Sequence[Cost]) -> None:
        """Print what a run with nothing due costs."""
        words = f"{rows:,} rows, nothing due"
        cpu, memory = (
            statistics.median(figures)
            for figures in zip(*((r.cpu_seconds, r.peak_mb) for r in runs), strict=True)
        )
        self._console.print(f"{words} ({len(runs)} runs): {cpu:.2f} s of CPU time, {memory:.0f} MB")
        self.target(f"{words}: seconds of CPU time", cpu, 0.5)
        self.target(f"{words}: MB of memory", memory, 100)
        self._console.print()

    def due(self, rows: int, due: int, measured: Sequence[tuple[Cost, Waits]]) -> None:
        """Print what a run over many rows costs itself and a writer beside it."""
        words = f"{rows:,} rows, {due:,} due, no files"
        seconds = statistics.median(cost.seconds for cost, _ in measured)
        p99 = statistics.median(waits.p99_ms for _, waits in measured)
        self._console.print(f"{words} ({len(measured)} runs): {seconds:.1f} s")
        for _, waits in measured:
            self._console.print(
                f"  {waits.writes:,} writes beside it waited {waits.p50_ms:.1f} ms (median), "
                f"{waits.p99_ms:.1f} ms (99 %), {waits.longest_ms:.0f} ms (longest)"
            )
        self.target(f"{words}: seconds", seconds, 15)
        self.target(f"{words}: ms that 99 % of the writes waited", p99, 50)
        self._console.print()

    def growth(self, result: Growth) -> None:
        """Print how the time grows."""
        table = Table(title=f"growth with {result.of}", title_justify="left")
        for size in result.sizes:
            table.add_column(f"{size:,}", justify="right")
        table.add_row(*(f"{seconds:.2f} s" for seconds in result.seconds))
        self._console.print(table)
        if not math.isnan(result.exponent):
            self.target(f"growth with {result.of}: exponent", result.exponent, 1.1)
        self._console.print()

    def calls(self, per_file: dict[str, float]) -> None:
        """Print the system calls per file."""
        table = Table(title="system calls per file (folders included)", title_justify="left")
        table.add_column("call")
        table.add_column("per file", justify="right")
        for name, often in sorted(per_file.items(), key=lambda each: -each[1]):
            if often >= 0.005:
                table.add_row(name, f"{often:.3f}")
        self._console.print(table)
        stats = sum(per_file.get(name, 0) for name in ("newfstatat", "statx", "fstat", "lstat"))
        self.target("unlinkat per file", per_file.get("unlinkat", 0), 1.02)
        self.target("newfstatat, statx and fstat per file", stats, 1.05)
        self.target("getdents64 per file", per_file.get("getdents64", 0), 0.05)
        self._console.print()

    def summary(self) -> None:
        """Print how many targets were met."""
        if self.targets:
            met = sum(bool(each["met"]) for each in self.targets)
            self._console.print(f"{met} of {len(self.targets)} targets met")


def draw(contests: Sequence[Contest], growths: Sequence[Growth], file: Path) -> None:
    """Draw the medians of all contests, and the growths."""
    from matplotlib.figure import Figure

    count = len(contests) + bool(growths)
    if not count:
        return
    figure = Figure(figsize=(9, 3.4 * count), layout="constrained")
    axes = figure.subplots(count, squeeze=False)[:, 0]
    for axis, result in zip(axes, contests, strict=False):
        names = list(result.seconds)[::-1]
        medians = [statistics.median(result.seconds[name]) for name in names]
        colours = ["#1b6ca8" if name.startswith("clean") else "#b5bcc4" for name in names]
        axis.barh(names, medians, color=colours)
        axis.set_title(result.title, loc="left", fontsize=10)
        axis.set_xlabel("seconds, median")
    if growths:
        axis = axes[-1]
        for growth in growths:
            axis.plot(
                growth.sizes, growth.seconds, marker="o", label=f"{growth.of}, exponent {growth.exponent:.2f}"
            )
        axis.set(xscale="log", yscale="log", xlabel="files, or rows", ylabel="seconds")
        axis.legend()
        axis.grid(visible=True, alpha=0.3)
    figure.savefig(file)
