"""What the figures of all rounds say: medians, ratios, tables and targets."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from contenders import BASELINE, FASTEST, FLOOR

Rounds = list[dict[str, float]]

# The figures of which less is better.
LESS_IS_BETTER = ("p50", "p99", "bytes_waiting", "bytes_ended")
FLAT_TOLERANCE = 0.9


@dataclass(frozen=True)
class Ratio:
    """The ratios of all rounds: their median, and from where to where they go."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


class Results:
    """The results of a run, as `latest.json` has them."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.rows: list[dict[str, Any]] = data["contenders"]

    def row(self, name: str) -> dict[str, Any]:
        """What is known of a contender; nothing when it was not measured."""
        return next((row for row in self.rows if row["name"] == name), {})

    def peers(self) -> list[str]:
        """The names of the other libraries."""
        return [row["name"] for row in self.rows if row["is_peer"]]

    def figure(self, name: str, figure: str) -> float | None:
        """The median of all rounds."""
        values = [entry[figure] for entry in self.row(name).get("rounds", []) if figure in entry]
        return median(values) if values else None

    def ratio(self, name: str, figure: str, other: str = BASELINE, other_figure: str = "") -> Ratio | None:
        """How many times another contender's figure this one's is, round by round."""
        mine, theirs = self.row(name).get("rounds", []), self.row(other).get("rounds", [])
        return ratio_of(
            (entry.get(figure), base.get(other_figure or figure)) for entry, base in zip(mine, theirs, strict=False)
        )

    def deep_ratio(self, name: str, figure: str, depth: int, base: int) -> Ratio | None:
        """The rate at one depth, as a multiple of that at another."""
        deep = self.row(name).get("depth", {})
        pairs = zip(deep.get(str(depth), []), deep.get(str(base), []), strict=False)
        return ratio_of((one.get(figure), other.get(figure)) for one, other in pairs)

    def best_peer(self, figure: str, fallback: str = "") -> tuple[str, str] | None:
        """The peer with the best median, and the figure that it has: where it lacks one, `fallback`."""
        found = []
        for name in self.peers():
            for wanted in filter(None, (figure, fallback)):
                value = self.figure(name, wanted)
                if value is not None:
                    found.append((value, name, wanted))
        if not found:
            return None
        best = min(found) if figure in LESS_IS_BETTER else max(found)
        return best[1], best[2]


def ratio_of(pairs: Iterable[tuple[float | None, float | None]]) -> Ratio | None:
    """The ratio of pairs of figures, of those rounds that have both."""
    ratios = [one / other for one, other in pairs if one is not None and other]
    return Ratio(median(ratios), min(ratios), max(ratios)) if ratios else None


# --- targets


@dataclass(frozen=True)
class Target:
    """What we want to be true: a ratio, and the bound that it must keep."""

    text: str
    ratio: Ratio | None
    bound: float
    keeps: Callable[[float, float], bool] = operator.ge

    @property
    def is_met(self) -> bool | None:
        """None when it was not measured."""
        return self.keeps(self.ratio.middle, self.bound) if self.ratio else None

    def __str__(self) -> str:
        sign = {operator.ge: "at least", operator.gt: "above", operator.le: "at most"}[self.keeps]
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[self.is_met]
        return f"{verdict:12} {self.text}: {self.ratio or '-'}, wanted {sign} {self.bound:g}"


def targets(results: Results) -> list[Target]:
    """All targets, with what this run says of them."""
    return [*_adding(results), *_running(results), *_waiting(results), *_flat(results)]


def _against_peer(
    results: Results, text: str, name: str, figure: str, peer: tuple[str, str] | None, keeps: Any
) -> Target:
    ratio = results.ratio(name, figure, *peer) if peer else None
    return Target(f"{text} ({peer[0] if peer else 'no peer'})", ratio, 1.0, keeps)


def _adding(results: Results) -> list[Target]:
    best, best_bulk = results.best_peer("add"), results.best_peer("bulk", "add")
    return [
        _against_peer(results, "add, to the fastest peer", BASELINE, "add", best, operator.ge),
        Target("add, to the floor", results.ratio(BASELINE, "add", FLOOR), 0.9),
        _against_peer(results, "add in bulk, to the fastest peer", BASELINE, "bulk", best_bulk, operator.gt),
    ]


def _running(results: Results) -> list[Target]:
    defaults = [
        _against_peer(results, "run, defaults, to a peer", BASELINE, "run", (name, "run"), operator.gt)
        for name in ("dramatiq", "huey")
    ]
    best = results.best_peer("run")
    return [
        *defaults,
        Target("run, defaults, to the floor", results.ratio(BASELINE, "run", FLOOR), 0.7),
        _against_peer(results, "run, fastest, to the fastest peer", FASTEST, "run", best, operator.gt),
        *(
            Target(f"two processes, to one, {name}", results.ratio(name, "run2", name, "run"), 1.6)
            for name in (BASELINE, FASTEST)
        ),
    ]


def _waiting(results: Results) -> list[Target]:
    return [
        _against_peer(
            results,
            f"{figure} from add to start, to the best peer",
            BASELINE,
            figure,
            results.best_peer(figure),
            operator.le,
        )
        for figure in ("p50", "p99")
    ]


def _flat(results: Results) -> list[Target]:
    depths = sorted(int(depth) for depth in results.row(BASELINE).get("depth", {}))
    if len(depths) < 2:
        return [Target("rates at the greatest depth, to the least", None, FLAT_TOLERANCE)]
    low, high = depths[0], depths[-1]
    return [
        Target(f"{figure} at {high:,} waiting, to {low:,}, {name}", results.deep_ratio(name, figure, high, low), 0.9)
        for name in (BASELINE, FASTEST)
        for figure in ("add", "run")
    ]


# --- tables


def number(value: float | None, digits: int = 0) -> str:
    """A figure for a table."""
    return "-" if value is None else f"{value:,.{digits}f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def title(row: dict[str, Any]) -> str:
    """A contender, as a table names it."""
    about = row.get("about") or {}
    name = about.get("name", row["name"])
    return f"{name} at {row['source']}" if row.get("source") else name


def short_table(results: Results) -> str:
    """The table of the README: each rate as a multiple of ours, and as it is."""
    head = ["", "add/s", "bulk add/s", "run/s, 1 process", "2 processes", "p50 / p99 ms", "bytes a waiting job"]
    head += ["round trips, add + run", "a job whose worker dies", "what is known of a job"]
    return table(head, [_short_row(results, row) for row in results.rows if row.get("rounds")])


def _short_row(results: Results, row: dict[str, Any]) -> list[str]:
    name, promises = row["name"], (row.get("about") or {}).get("guarantees", {})
    rates = [_rate(results, name, figure) for figure in ("add", "bulk", "run", "run2")]
    latency = " / ".join(number(results.figure(name, figure), 2) for figure in ("p50", "p99"))
    trips = " + ".join(number(results.figure(name, figure), 2) for figure in ("add_trips", "run_trips"))
    return [
        f"**{title(row)}**" if not row["is_peer"] else title(row),
        *rates,
        latency,
        number(results.figure(name, "bytes_waiting")),
        trips,
        promises.get("lease", ""),
        promises.get("record", ""),
    ]


def _rate(results: Results, name: str, figure: str) -> str:
    value = results.figure(name, figure)
    # a bulk is compared with our bulk, or with our add while we have none
    ratio = results.ratio(name, figure)
    if value is None:
        return "-"
    return f"{number(value)}" if ratio is None or name == BASELINE else f"{ratio.middle:.2f}x ({number(value)})"


def full_report(results: Results) -> str:
    """All that was measured, in Markdown."""
    machine = results.data["machine"]
    parts = [
        "# Benchmarks",
        "Written by `python benchmarks/run.py`; [what each figure means](../README.md). Rates are jobs a second: the "
        f"medians of {results.data['rounds']} interleaved rounds.",
        "\n".join(f"- {name}: {value}" for name, value in machine.items()),
        "## In short",
        "Rates: as a multiple of limpyd_jobs in its defaults (and as they are).",
        short_table(results),
        "## Ratios to limpyd_jobs in its defaults",
        "The median of the ratios of the rounds (and from the lowest to the highest).",
        _ratio_table(results),
        "## Counted by the server",
        "For each job. Commands include those that scripts call; what a worker asks while it waits is counted as well.",
        _count_table(results),
        *_depth_part(results),
        "## Configurations",
        _configuration_table(results),
        "## Targets",
        "\n".join(f"- {target}" for target in targets(results)),
        *_error_part(results),
    ]
    return "\n\n".join(parts) + "\n"


def _ratio_table(results: Results) -> str:
    figures = ["add", "bulk", "run", "run2", "p50", "p99"]
    rows = [
        [title(row), *(str(results.ratio(row["name"], figure) or "-") for figure in figures)]
        for row in results.rows
        if row.get("rounds")
    ]
    return table(["", *figures], rows)


def _count_table(results: Results) -> str:
    heads = {
        "add_trips": "round trips, add",
        "run_trips": "round trips, run",
        "add_commands": "commands, add",
        "run_commands": "commands, run",
        "bytes_waiting": "bytes, waiting",
        "bytes_ended": "bytes, ended",
    }
    rows = [
        [
            title(row),
            number(row.get("jobs")),
            *(number(results.figure(row["name"], figure), 0 if "bytes" in figure else 2) for figure in heads),
        ]
        for row in results.rows
        if row.get("rounds")
    ]
    return table(["", "jobs measured", *heads.values()], rows)


def _depth_part(results: Results) -> list[str]:
    deep = [row for row in results.rows if row.get("depth")]
    if not deep:
        return []
    depths = sorted({int(depth) for row in deep for depth in row["depth"]})
    rows = []
    for row in deep:
        for figure in ("add", "run"):
            values = [[entry[figure] for entry in row["depth"].get(str(depth), [])] for depth in depths]
            rows.append([f"{title(row)}, {figure}/s", *(number(median(found)) if found else "-" for found in values)])
    return ["## Rates by the number of waiting jobs", table(["", *(f"{depth:,}" for depth in depths)], rows)]


def _configuration_table(results: Results) -> str:
    rows = []
    for row in results.rows:
        about = row.get("about") or {}
        promises = about.get("guarantees", {})
        words = [about.get("version", ""), about.get("configuration", "")]
        rows.append([title(row), *words, *(promises.get(name, "") for name in ("ack", "lease", "record", "result"))])
    head = ["", "version", "configuration", "acknowledged", "when the worker dies", "record", "result"]
    return table(head, rows)


def _error_part(results: Results) -> list[str]:
    lines = [
        f"- {title(row)}, {what}: {reason}" for row in results.rows for what, reason in row.get("errors", {}).items()
    ]
    return ["## What could not be measured", "\n".join(lines)] if lines else []
