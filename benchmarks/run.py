"""Measure limpyd_jobs and its peers side by side: `python benchmarks/run.py`, see README.md here."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import redis
from contenders import BASELINE, CONTENDERS, FASTEST, FLOOR, HERE, QUICK, Contender, NotInstalled
from measure import Measurement, Plan, deep, folder_for, interleaved
from processes import Failed, Setup
from report import Results, full_report, short_table, targets
from servers import PostgresServer, RedisServer, ServerError

RESULTS = HERE / "results"
WORK = HERE / ".work"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"

FULL = Plan(
    rounds=5,
    jobs=40_000,
    seconds=4.0,
    latency_jobs=500,
    latency_interval=0.01,
    idle_seconds=3.0,
    depths=(1_000, 10_000, 100_000, 1_000_000),
)
QUICK_PLAN = Plan(
    rounds=1,
    jobs=5_000,
    seconds=1.0,
    latency_jobs=100,
    latency_interval=0.01,
    idle_seconds=1.0,
    depths=(1_000, 100_000),
)


def main() -> int:
    """Run all, write the results, and say what was found."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that all is ended and removed
    if options.report:
        results = Results(json.loads((RESULTS / "latest.json").read_text()))
    else:
        results = Results(measure_all(options))
        write(results, name_of(options))
    print(short_table(results))
    for row in results.rows:
        for what, reason in row["errors"].items():
            print(f"{row['name']}, {what}: {reason}")
    if options.update_readme:
        update_readme(results)
    found = targets(results) if options.check_targets else []
    for target in found:
        print(target)
    return 1 if any(target.is_met is False for target in found) else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure limpyd_jobs and its peers side by side.")
    parser.add_argument("--quick", action="store_true", help="about a minute, few contenders; keeps latest.* as it is")
    parser.add_argument("--only", metavar="NAMES", help="only these contenders, separated by commas")
    parser.add_argument("--rounds", type=int, help="how many rounds are measured")
    parser.add_argument("--jobs", type=int, help="the most jobs in a measurement")
    parser.add_argument("--no-depth", action="store_true", help="leave out the rates of full queues")
    parser.add_argument(
        "--against", metavar="PATH", help="measure the limpyd_jobs of another checkout, too", default=""
    )
    parser.add_argument(
        "--check-targets", action="store_true", help="say which targets are met; exit code 1 if not all"
    )
    parser.add_argument("--update-readme", action="store_true", help="write the short table into the README")
    parser.add_argument("--report", action="store_true", help="measure nothing: read results/latest.json")
    return parser.parse_args()


def plan_of(options: argparse.Namespace) -> Plan:
    """How much to measure."""
    plan = QUICK_PLAN if options.quick else FULL
    given = {"rounds": options.rounds, "jobs": options.jobs, "depths": () if options.no_depth else None}
    return replace(plan, **{name: value for name, value in given.items() if value is not None})


def chosen(options: argparse.Namespace) -> list[Contender]:
    """Whom to measure."""
    names = options.only.split(",") if options.only else QUICK if options.quick else [c.key for c in CONTENDERS]
    unknown = set(names) - {contender.key for contender in CONTENDERS}
    if unknown:
        sys.exit(f"no such contender: {', '.join(sorted(unknown))}")
    # ratios are to it, so it is always there
    found = [contender for contender in CONTENDERS if contender.key in names or contender.key == BASELINE]
    if options.against:
        source = os.path.abspath(options.against)
        found += [replace(c, source=source, is_deep=False) for c in found if c.key in (BASELINE, FASTEST)]
    return found


# --- measuring


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as `latest.json` has them."""
    plan, contenders, work = plan_of(options), chosen(options), WORK / str(os.getpid())
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        servers = stack.enter_context(running_servers(contenders, work))
        rows = {contender.name: new_row(contender) for contender in contenders}
        setups = [setup for contender in contenders if (setup := prepare(contender, servers, work, rows))]
        setups = [setup for setup in setups if is_fair(setup, rows)]
        measurements = [Measurement(setup, servers[setup.contender.server], plan) for setup in setups]
        rounds = interleaved(measurements, plan, tell)
        for measurement in measurements:
            row = rows[measurement.setup.contender.name]
            row |= {"jobs": measurement.jobs, "rounds": rounds.get(row["name"], [])}
            row["errors"] |= measurement.errors
        for setup in setups:
            row = rows[setup.contender.name]
            if setup.contender.is_deep and plan.depths and row["rounds"]:
                measure_depths(setup, servers["redis"], plan, row)
        return {"machine": machine(servers), "rounds": plan.rounds, "contenders": list(rows.values())}


def new_row(contender: Contender) -> dict[str, Any]:
    """What is known of a contender before it was measured."""
    return {"name": contender.name, "source": contender.source, "is_peer": contender.is_peer, "errors": {}}


@contextmanager
def running_servers(contenders: list[Contender], work: Path) -> Iterator[dict[str, Any]]:
    """The servers that the contenders need; one that cannot be started is an error instead."""
    kinds = {"redis": RedisServer, "postgres": PostgresServer}
    servers: dict[str, Any] = {}
    try:
        for kind in sorted({contender.server for contender in contenders} | {"redis"}):
            try:
                servers[kind] = kinds[kind](folder_for(work, f"server {kind}"))
            except ServerError as error:
                servers[kind] = error
        if isinstance(servers["redis"], ServerError):
            sys.exit(str(servers["redis"]))
        yield servers
    finally:
        for server in servers.values():
            if not isinstance(server, ServerError):
                server.stop()


def prepare(contender: Contender, servers: dict[str, Any], work: Path, rows: dict[str, dict[str, Any]]) -> Setup | None:
    """A contender that is ready to be run; None when it is not, with the reason in its row."""
    row, server = rows[contender.name], servers[contender.server]
    try:
        if isinstance(server, ServerError):
            raise NotInstalled(str(server))
        setup = Setup(contender, contender.python(), folder_for(work, contender.name), server.url())
        row["about"] = setup.call("describe", timeout=60)
        return replace(setup, roles=tuple(row["about"]["roles"]))
    except (NotInstalled, Failed) as error:
        row["errors"]["start"] = str(error)
        return None


def is_fair(setup: Setup, rows: dict[str, dict[str, Any]]) -> bool:
    """Does the floor write what we write? If not, its figures would mean nothing; the others need not be asked."""
    if setup.contender.key != FLOOR:
        return True
    tell("checking that the floor writes what limpyd_jobs writes")
    try:
        difference = setup.call("check", timeout=60)
    except Failed as error:
        difference = str(error)
    if difference:
        rows[setup.contender.name]["errors"]["check"] = difference
    return not difference


def measure_depths(setup: Setup, server: RedisServer, plan: Plan, row: dict[str, Any]) -> None:
    """The rates at all depths, each in a database of its own."""

    def make(position: int) -> Measurement:
        work = folder_for(setup.work, f"depth {position}")
        return Measurement(replace(setup, work=work, url=server.url(position + 1)), server, plan, position + 1)

    server.empty()
    row["depth"], errors = deep(make, plan, tell)
    row["errors"] |= {f"depth {depth}": reason for depth, reason in errors.items()}


def machine(servers: dict[str, Any]) -> dict[str, str]:
    """Where and with what it was measured."""
    model = re.search(r"model name\s*:\s*(.*)", read("/proc/cpuinfo"))
    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{model.group(1) if model else platform.processor()}, {os.cpu_count()} cores",
        "system": platform.system() + " " + platform.release(),
        "Python": platform.python_version(),
        "redis-py": redis.__version__,
        "Redis": f"{servers['redis'].version}, on TCP, nothing persisted",
    }
    postgres = servers.get("postgres")
    if isinstance(postgres, PostgresServer):
        found["PostgreSQL"] = f"{postgres.version}, on TCP, settings as initdb writes them (fsync and all)"
    elif postgres:
        found["PostgreSQL"] = str(postgres)
    return found


def read(path: str) -> str:
    """The text of a file; nothing where it is not."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


_BEGIN = time.monotonic()


def tell(text: str) -> None:
    """Say what goes on."""
    print(f"{time.monotonic() - _BEGIN:6.0f} s  {text}", file=sys.stderr, flush=True)


# --- writing


def write(results: Results, name: str) -> None:
    """Keep the results: those of a whole run to be shown, others for us."""
    folder = RESULTS if name == "latest" else WORK
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results.data, indent=1) + "\n")
    (folder / f"{name}.md").write_text(full_report(results))


def name_of(options: argparse.Namespace) -> str:
    """What the files with the results are called; only a whole run replaces those that are shown."""
    if options.quick:
        return "quick"
    return "partial" if options.only or options.against or options.no_depth else "latest"


def update_readme(results: Results) -> None:
    """Put the short table between its marks."""
    text = README.read_text()
    if BEGIN not in text or END not in text:
        sys.exit(f"{README} has no {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    README.write_text(f"{before}{BEGIN}\n{short_table(results)}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
