"""``python -m benchmarks.simulation``: how long a cluster takes for 100 million files, from measured costs.

The model is a closed queueing network: each thread of each worker computes, waits for the network, and
queues at the one metadata server, again and again.  Mean value analysis solves it exactly (Reiser and
Lavenberg, 1980).  What a file costs a worker and what a task costs the scheduler is measured on this machine;
how fast a metadata server is cannot be, so three kinds are assumed, and yours can be given.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.dask_task import SLICE_SECONDS
from eemtcleanupd.deletion.rate_limit import DeletionControls
from eemtcleanupd.deletion.tree import FolderTask, empty_folder
from eemtcleanupd.installation import add_extra

WORKERS = (1, 2, 4, 8, 16, 32, 64)
_THREADS = 4
_START_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU seconds: of a worker for one file, of scheduler and client for one task."""

    per_file: float
    per_task: float


@dataclass(frozen=True, slots=True)
class Server:
    """A metadata server: unlinks per second when it is busy, and the network's seconds to it and back."""

    name: str
    unlinks_per_second: float
    latency_seconds: float


SERVERS = (
    Server("a file server, NFS", 12_000, 0.0003),
    Server("a parallel filesystem, one metadata server", 40_000, 0.0005),
    Server("the same, metadata on eight", 250_000, 0.0008),
)


def files_per_second(server: Server, costs: Costs, workers: int) -> float:
    """Return the throughput of so many workers of four threads each.

    A file costs two trips: its status and its unlink; only the unlink keeps the server busy.  One
    interpreter computes in one thread at a time, so a worker never does more than 1 / ``per_file``.
    """
    service = 1 / server.unlinks_per_second
    think = costs.per_file + 2 * server.latency_seconds
    queued, rate = 0.0, 0.0
    for threads in range(1, workers * _THREADS + 1):
        waiting = service * (1 + queued)
        rate = threads / (think + waiting)
        queued = rate * waiting
    return min(rate, workers / costs.per_file)


def hours(server: Server, costs: Costs, workers: int, files: int) -> float:
    """Return how long it takes in all; tasks last a slice each, and the scheduler hands them out in turn."""
    deleting = files / files_per_second(server, costs, workers)
    tasks = deleting / SLICE_SECONDS * workers * _THREADS
    scheduling = tasks * costs.per_task
    # A worker that asks while the scheduler is at another's task waits; the last slice is not shared.
    return (_START_SECONDS + max(deleting, scheduling) + SLICE_SECONDS) / 3600


def measure(folder: Path, files: int, rounds: int = 3) -> Costs:
    """Measure what a file costs its thread, and a task the scheduler and us: the best of some rounds."""
    per_file = min(_file_cost(folder / f"item{number}", files) for number in range(rounds))
    return Costs(per_file, min(_task_costs(rounds)))


def _file_cost(item: Path, files: int) -> float:
    (item / "job").mkdir(parents=True)
    for number in range(files):
        (item / "job" / f"raster-{number}.tif").write_bytes(b"x" * 300)
    os.sync()
    fd = os.open(item, os.O_RDONLY | os.O_DIRECTORY)
    controls = DeletionControls(StopFlag())
    began = time.thread_time()
    stats = empty_folder(fd, FolderTask("job", "job", item.stat().st_dev), controls, lambda *_: None)
    seconds = time.thread_time() - began
    controls.close()
    os.close(fd)
    if stats.files != files:
        raise SystemExit(f"Only {stats.files} of {files} files were removed: {stats.errors}")
    return seconds / files


def _task_costs(rounds: int, tasks: int = 200) -> Iterator[float]:
    if importlib.util.find_spec("distributed") is None:
        raise SystemExit(f"to measure a task's cost needs dask. {add_extra('distributed')}")
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=_THREADS, dashboard_address=None) as cluster,  # type: ignore[no-untyped-call]
        Client(cluster) as client,  # type: ignore[no-untyped-call]
    ):
        executor = client.get_executor(pure=False)
        executor.submit(os.getpid).result()
        for _ in range(rounds):
            began = time.process_time()  # the scheduler is a thread of this process
            for future in [executor.submit(os.getpid) for _ in range(tasks)]:
                future.result()
            yield (time.process_time() - began) / tasks


def draw(servers: Sequence[Server], costs: Costs, files: int, file: Path) -> None:
    """Draw the hours by workers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for server in servers:
        axes.plot(WORKERS, [hours(server, costs, n, files) for n in WORKERS], marker="o", label=server.name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(WORKERS, [str(workers) for workers in WORKERS])
    axes.set(xlabel=f"workers of {_THREADS} threads", ylabel=f"hours for {files / 1e6:g} million files")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, print the table, and draw the picture where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--files", type=int, default=100_000_000)
    parser.add_argument("--measured-files", type=int, default=20_000, help="how many to measure with")
    parser.add_argument(
        "--server",
        nargs=3,
        metavar=("NAME", "UNLINKS_PER_SECOND", "LATENCY_MS"),
        help="a metadata server of yours, in place of those assumed",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE")
    options = parser.parse_args()
    servers: Sequence[Server] = SERVERS
    if options.server:
        name, rate, latency = options.server
        servers = (Server(name, float(rate), float(latency) / 1000),)
    with tempfile.TemporaryDirectory(prefix="eemtcleanupd-bench-") as folder:
        costs = measure(Path(folder), options.measured_files)
    console = Console(width=120)
    console.print(
        f"measured: {costs.per_file * 1e6:.1f} µs of CPU time for a file, "
        f"{costs.per_task * 1e3:.1f} ms for a task; {_THREADS} threads a worker"
    )
    table = Table(title=f"hours for {options.files:,} files, by workers", title_justify="left")
    table.add_column("metadata server")
    for workers in WORKERS:
        table.add_column(str(workers), justify="right")
    for server in servers:
        words = f"{server.name} ({server.unlinks_per_second:,.0f}/s, {server.latency_seconds * 1000:g} ms)"
        table.add_row(words, *(f"{hours(server, costs, n, options.files):.2f}" for n in WORKERS))
    console.print(table)
    if options.plot is not None:
        draw(servers, costs, options.files, options.plot)


if __name__ == "__main__":
    main()
