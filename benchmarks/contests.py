"""Whole cleanup runs beside what an operator would type instead, on the same trees, in turn.

All contenders of a round work on trees that were built the same way just before, in an order that changes
from round to round; the ratios are medians of the rounds' own ratios, so that a machine that is busier in
one round than in another does not decide.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.stores import Shape, build_expired

RM = "rm -rf"
FOUR_RM = "four rm -rf in parallel"
SIXTEEN_RM = "sixteen rm -rf in parallel"
PATHLIB = "sizes by pathlib, then rmtree"
AUTO = "clean, auto workers"
CLEAN = (sys.executable, "-m", "eemtcleanupd", "clean")

Contender = Callable[[Path], None]


def clean_with(workers: int | str) -> str:
    """Return what a run with so many workers is called."""
    return AUTO if workers == "auto" else f"clean, {workers} worker{'s' if workers != 1 else ''}"


def clean(store: Path, workers: int | str) -> subprocess.Popen[bytes]:
    """Begin a run on a store."""
    (store / "cleanup_config.yaml").write_text(f"performance: {{max_workers: {workers}}}\n")
    return subprocess.Popen(CLEAN, cwd=store, stdout=subprocess.DEVNULL)


def _ours(workers: int | str) -> Contender:
    def run(store: Path) -> None:
        code = clean(store, workers).wait()
        left = list((store / "results").glob("job-*"))
        if code or left:
            raise SystemExit(f"the run ended with {code}, {len(left)} jobs were left")

    return run


def _jobs(store: Path) -> list[Path]:
    return sorted((store / "results").iterdir())


def _parallel_rm(count: int) -> Contender:
    """``count`` processes; where there are fewer jobs than that, they share out the folders below."""

    def run(store: Path) -> None:
        places = _jobs(store)
        if len(places) < count:
            places = [below for place in places for below in place.iterdir()]
        shares = [places[first::count] for first in range(count)]
        for process in [subprocess.Popen(["rm", "-rf", *share]) for share in shares if share]:
            process.wait()
        subprocess.run(["rm", "-rf", *_jobs(store)], check=True)

    return run


def _rm(store: Path) -> None:
    subprocess.run(["rm", "-rf", *_jobs(store)], check=True)


def _find(store: Path) -> None:
    subprocess.run(["find", *_jobs(store), "-delete"], check=True)


def _rsync(store: Path) -> None:
    empty = store / "empty"
    empty.mkdir()
    subprocess.run(["rsync", "-a", "--delete", f"{empty}/", f"{store / 'results'}/"], check=True)


def _rmtree(store: Path) -> None:
    for job in _jobs(store):
        shutil.rmtree(job)


def _pathlib(store: Path) -> None:
    for job in _jobs(store):
        sum(path.stat().st_size for path in job.rglob("*") if path.is_file())
        shutil.rmtree(job)


RIVALS: Mapping[str, Contender] = {
    RM: _rm,
    FOUR_RM: _parallel_rm(4),
    SIXTEEN_RM: _parallel_rm(16),
    "find -delete": _find,
    "rsync --delete from an empty folder": _rsync,
    "shutil.rmtree": _rmtree,
    PATHLIB: _pathlib,
}


@dataclass(frozen=True, slots=True)
class Target:
    """What is hoped for: the time of one contender at most ``ratio`` of another's."""

    ours: str
    ratio: float
    contender: str


@dataclass(frozen=True, slots=True)
class Contest:
    """The seconds that each contender took on one shape, round by round; the most memory of a run."""

    shape: Shape
    filesystem: str
    is_cold: bool
    seconds: Mapping[str, Sequence[float]]
    peak_mb: float

    @property
    def title(self) -> str:
        """What was measured, in words."""
        return f"{self.shape}; {self.filesystem}, {'cold' if self.is_cold else 'warm'} cache"

    def ratio(self, contender: str, to: str) -> float:
        """Return the median over the rounds of one contender's time by another's."""
        pairs = zip(self.seconds[contender], self.seconds[to], strict=True)
        return statistics.median(one / other for one, other in pairs)


def contest(
    shape: Shape, rounds: int, folder: Path, workers: Sequence[int | str], console: Console, *, is_cold: bool
) -> Contest:
    """Let all contenders delete the same trees, in turn."""
    contenders = {clean_with(count): _ours(count) for count in workers}
    contenders |= {name: run for name, run in RIVALS.items() if name[:5] != "rsync" or shutil.which("rsync")}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names, store, peak = list(contenders), folder / "store", Peak()
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            with console.status(f"{shape}, round {number + 1} of {rounds}: {name}"):
                build_expired(store, shape)
                if is_cold:
                    Path("/proc/sys/vm/drop_caches").write_text("3\n")
                with peak:
                    began = time.perf_counter()
                    contenders[name](store)
                    took = time.perf_counter() - began
                seconds[name].append(took)
    subprocess.run(["rm", "-rf", store], check=True)
    return Contest(shape, filesystem_of(folder), is_cold, seconds, peak.mb)


def filesystem_of(folder: Path) -> str:
    """Return the kind of filesystem that a folder is on."""
    command = ["stat", "--file-system", "--format=%T", str(folder)]
    name: str = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return {"ext2/ext3": "ext4"}.get(name, name)


class Peak:
    """The most memory that runs of ours had, helper processes included, while this was entered.

    Of pages that several processes share, which forked ones do, each counts its part (``Pss``, proc(5)).
    """

    def __init__(self) -> None:
        self.mb = 0.0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._end.clear()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            resident = sum(_resident_mb(process) for process in _below(os.getpid()))
            self.mb = max(self.mb, resident)


def _below(process: int) -> list[int]:
    """Return the processes of ours below one, at any depth."""
    found = []
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_below(child)]
    except OSError:  # it has ended meanwhile
        pass
    return found


def _resident_mb(process: int) -> float:
    try:
        if b"eemtcleanupd" not in Path(f"/proc/{process}/cmdline").read_bytes():
            return 0
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024 / 1e6
