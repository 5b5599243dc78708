"""Whole cleanup runs beside what an operator would type instead, on equal stores, in turn.

Every contender works on a filesystem of its own, in an order that changes from round to round.  The ratios
are medians of the rounds' own ratios, so that a machine that is busier in one round than in another does not
decide.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.daemon import run_alone, run_beside_clients
from benchmarks.filesystems import Filesystem

EEMT = "EEMT's way"
RM, FOUR_RM, SIXTEEN_RM = "rm -rf", "4 rm -rf", "16 rm -rf"
CLEAN, CLEAN_16 = "clean, 4 workers", "clean, 16 workers"
DAEMON, BESIDE_CLIENTS = "daemon", "daemon beside 50 clients"
COMMAND = (sys.executable, "-m", "eemtcleanupd", "clean")

Contender = Callable[[Path], float]


def _timed(run: Callable[[Path], None]) -> Contender:
    def measured(store: Path) -> float:
        began = time.perf_counter()
        run(store)
        return time.perf_counter() - began

    return measured


def clean(store: Path, workers: int, *options: str) -> subprocess.Popen[bytes]:
    """Begin a run on a store."""
    command = [*COMMAND, "--workers", str(workers), *options]
    return subprocess.Popen(command, cwd=store, stdout=subprocess.DEVNULL)


def _clean_with(workers: int) -> Contender:
    return _timed(lambda store: insist(clean(store, workers)))


def _eemt(store: Path) -> None:
    insist(subprocess.Popen([sys.executable, "-m", "benchmarks.eemt", store]))


def insist(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process, and break off unless it succeeds."""
    if code := process.wait():
        raise SystemExit(f"{process.args!r} ended with {code}")


def _rm(count: int) -> Contender:
    """``count`` processes; where there are fewer jobs than that, they share out the folders below."""

    def run(store: Path) -> None:
        places = _artifacts(store)
        below = places
        if len(places) < count:
            below = [path for place in places for path in (place.iterdir() if place.is_dir() else [place])]
        processes = [
            subprocess.Popen(["rm", "-rf", *share], cwd=store)
            for first in range(count)
            if (share := [path.relative_to(store) for path in below[first::count]])
        ]
        for process in processes:
            insist(process)
        if below is not places:
            subprocess.run(["rm", "-rf", *places], check=True)

    return _timed(run)


def _artifacts(store: Path) -> list[Path]:
    """Return what is to be deleted: all but the trash."""
    return [path for root in ("results", "uploads") for path in sorted((store / root).glob("[!.]*"))]


CONTENDERS: Mapping[str, Contender] = {
    EEMT: _timed(_eemt),
    RM: _rm(1),
    FOUR_RM: _rm(4),
    SIXTEEN_RM: _rm(16),
    CLEAN: _clean_with(4),
    CLEAN_16: _clean_with(16),
    DAEMON: run_alone,
}
CLIENTS: Mapping[str, Contender] = {DAEMON: run_alone, BESIDE_CLIENTS: run_beside_clients}


@dataclass(frozen=True, slots=True)
class Contest:
    """The seconds that each contender took on one shape, round by round."""

    title: str
    seconds: Mapping[str, Sequence[float]]

    def median(self, contender: str) -> float:
        """Return the median over the rounds of one contender's time."""
        return statistics.median(self.seconds[contender])

    def ratio(self, contender: str, to: str) -> float:
        """Return the median over the rounds of one contender's time by another's."""
        pairs = zip(self.seconds[contender], self.seconds[to], strict=True)
        return statistics.median(one / other for one, other in pairs)


def contest(title: str, filesystem: Filesystem, contenders: Mapping[str, Contender], rounds: int) -> Contest:
    """Let all contenders empty equal stores, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            with filesystem.fresh() as store:
                seconds[name].append(contenders[name](store))
                if left := _artifacts(store):
                    raise SystemExit(f"{name} left {len(left)} artifacts")
    return Contest(title, seconds)


class Peak:
    """The most memory that runs of ours had, helper processes included, while this was entered.

    Of pages that several processes share, which forked ones do, each counts its part (``Pss``, proc(5)).
    """

    def __init__(self) -> None:
        self.mb = 0.0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Peak:
        self._end.clear()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

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
