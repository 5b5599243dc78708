"""The benchmarks work at small size, and accept no contender that leaves anything."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.contests import CLEAN, CONTENDERS, EEMT, FOUR_RM, RM, SIXTEEN_RM, Contest, contest
from benchmarks.filesystems import Folder
from benchmarks.measures import Measure
from benchmarks.report import Figures, Target
from benchmarks.stores import Shape

SMALL = Shape(jobs=3, files=5, uploads=1)
FIGURES = Figures(
    "a machine",
    3,
    [Contest("some jobs", {name: [1.0, 2.0, 4.0] for name in CONTENDERS} | {CLEAN: [2.0, 4.0, 1.0]})],
    [Measure("some rows", "s", [0.5, 0.25, 1.0], most=0.4)],
)


@pytest.mark.fast_parameters(1)
@pytest.mark.parametrize(
    "shape",
    [
        SMALL,
        replace(SMALL, files=8, folders=4, links=2, live_rows=5),
        Shape(jobs=1, files=4, folders=2, is_deep=True),
    ],
    ids=str,
)
def test_each_contender_of_an_operator_deletes_all_and_works_on_a_store_of_its_own(
    tmp_path: Path, shape: Shape
) -> None:
    contenders = {name: CONTENDERS[name] for name in (EEMT, RM, FOUR_RM, SIXTEEN_RM, CLEAN)}
    result = contest("small", Folder(tmp_path, shape.build), contenders, rounds=1)
    assert [len(seconds) for seconds in result.seconds.values()] == [1] * len(contenders)
    assert list(tmp_path.iterdir()) == []


def test_a_contender_that_leaves_artifacts_ends_the_bench(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        contest("small", Folder(tmp_path, SMALL.build), {"idler": lambda _: 0.1}, rounds=1)


def test_ratios_are_medians_of_the_ratios_of_each_round() -> None:
    assert FIGURES.contests[0].ratio(CLEAN, RM) == 2.0


def test_the_table_has_a_cell_for_each_contender_and_ratio() -> None:
    rows = [line for line in FIGURES.markdown().splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert len({row.count("|") for row in rows}) == 1
    assert rows[0].count("|") > len(CONTENDERS) + 2


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    FIGURES.write(tmp_path / "new" / "figures.json")
    assert Figures.read(tmp_path / "new" / "figures.json") == FIGURES


def test_each_target_and_each_measure_has_a_verdict() -> None:
    verdicts = FIGURES.verdicts({"some jobs": [Target(CLEAN, 2.0, RM), Target(CLEAN, 1.9, RM)]})
    assert [words.startswith("met") for words in verdicts] == [True, False, False]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_quick_bench_measures_all_kinds(tmp_path: Path) -> None:
    parts = ["big-jobs", "deep", "plan", "rows", "clients", "start", "large"]
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--results", str(tmp_path)]
    subprocess.run(
        [*command, "--only", *parts],
        cwd=Path(__file__).parents[1],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (written,) = tmp_path.glob("*.json")
    figures = Figures.read(written)
    assert [len(each.seconds) for each in figures.contests] == [len(CONTENDERS), 3]
    assert len(figures.measures) == 8
    assert all(value > 0 for each in figures.measures for value in each.values)
