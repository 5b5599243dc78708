"""Run the stress tests: ``python -m tests.stress``.  Prints the figures; exits with 1 if anything failed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from tests.stress import failover, kill, owner, races

_ATTACKS = ("kill", "inject", "races", "fuzz", "http", "failover")
_CONFIGURATION = "tests/config/test_loading.py::test_any_"
_FUZZ = [
    "tests/scenarios/test_hostile_store_contents.py",
    "tests/scenarios/test_random_histories.py",
    *(f"{_CONFIGURATION}{what}_loads_or_is_a_configuration_error" for what in ("mapping", "schedule")),
]
_HTTP = ["tests/web/test_schema.py"]
_HTTP_SHARE = 8  # a request takes so much longer than an input of the other fuzzers


def main() -> int:
    """Attack."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("attacks", nargs="*", help="kill, inject, races, fuzz, http, failover (default: all)")
    parser.add_argument("--minutes", type=float, default=5, help="how long races and failover last (5)")
    parser.add_argument("--rounds", type=int, default=500, help="commands of root in races (500)")
    parser.add_argument("--examples", type=int, default=2000, help="inputs for each fuzzer (2000)")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(kill.VARIANTS),
        choices=kill.VARIANTS,
        help="which runs kill and inject interrupt (default: all)",
    )
    parser.add_argument(
        "--errors",
        nargs="+",
        default=list(kill.ERRORS),
        choices=kill.ERRORS,
        help="what inject injects (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    options = parser.parse_args()
    attacks = options.attacks or [*_ATTACKS]
    if unknown := set(attacks) - set(_ATTACKS):
        parser.error(f"there is no attack {', '.join(sorted(unknown))}")
    figures: dict[str, Any] = {}
    faults: list[str] = []
    for attack in attacks:
        print(f"{attack} …", flush=True)
        began = time.monotonic()
        if attack in {"kill", "inject"}:
            hows = ["SIGKILL"] if attack == "kill" else options.errors
            tally = kill.run(options.variants, hows)
            figures[attack] = {"points": dict(tally.points), "endings": dict(tally.endings)}
            faults += tally.faults
        elif attack == "races":
            for outcome in (races.run(options.minutes), owner.run(options.rounds)):
                figures.setdefault(attack, {}).update(outcome.done)
                faults += outcome.faults
        elif attack == "failover":
            taken_over = failover.run(options.minutes * 60)
            figures[attack] = taken_over.figures
            faults += taken_over.faults
        else:
            examples, tests = options.examples, _FUZZ
            if attack == "http":
                examples, tests = max(1, examples // _HTTP_SHARE), _HTTP
            command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--timeout", "7200", *tests]
            environment = {**os.environ, "STRESS_EXAMPLES": str(examples)}
            done = subprocess.run(command, env=environment, check=False)
            figures[attack] = {"examples of each fuzzer": examples}
            if done.returncode:
                faults.append("a fuzzer found something: see above")
        figures[attack]["minutes"] = round((time.monotonic() - began) / 60, 1)
        print(f"{attack}: {figures[attack]}", flush=True)
    if options.json:
        print(json.dumps({"figures": figures, "faults": faults}, indent=2))
    print(f"{len(faults)} faults", *faults, sep="\n  ")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
