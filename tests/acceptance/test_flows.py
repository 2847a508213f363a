"""Jobs that come after others, chains and groups, on workers that are killed at random moments."""

from __future__ import annotations

import random
from typing import Any

import pytest

from limpyd_jobs import STATUSES, admin
from limpyd_jobs.tasks import chain, chord
from limpyd_jobs.workflows import Workflow

from .faults import ASYNC, KINDS, PLAIN, PREFETCH, FaultsJob, Kind, Stage
from .flow_tasks import add_up, count_up

# many processes are started one after the other, which takes ten seconds, or a minute where much else runs
pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.timeout(300)]
kinds = pytest.mark.parametrize("kind", [PLAIN, PREFETCH, ASYNC], ids=lambda kind: kind.name)


def kill_at_random(stage: Stage, runs: int, kills: int = 6) -> None:
    """Kill a worker with SIGKILL, several times, until so many runs have begun."""
    rng = random.Random(20)
    for moment in sorted(rng.sample(range(runs // 20, runs * 9 // 10), kills)):
        stage.wait_for_runs(moment)
        stage.crews[0].kill(rng.randrange(len(stage.crews[0].processes)))
    stage.crews[0].wait_until_ready()


def assert_order(stage: Stage, jobs: list[Any]) -> None:
    """None of them began before all that it comes after had run."""
    begun: dict[str, float] = {}
    for ident, when, _ in stage.ledger.runs():
        begun.setdefault(ident, when)
    for job in jobs:
        assert all(begun[parent] < begun[job.ident] for parent in job.parents.smembers()), job.ident


@kinds
def test_every_chain_and_every_callback_comes_to_its_end_although_workers_are_killed(kind: Kind) -> None:
    with Stage("killed workflows", kind=kind) as stage:
        stage.start_workers(3).wait_until_ready()
        workflows = [planned(number) for number in range(30)]
        for workflow in workflows:
            workflow.add()
            for job in workflow.jobs:
                stage.ledger.note("added", job.ident)
        kill_at_random(stage, runs=30 * 12)

        found = stage.tally()

        assert found.wrong == []
        assert found.once + found.more == found.added == 30 * 12
        for workflow in workflows:
            assert {job.status.hget() for job in workflow.jobs} == {STATUSES.SUCCESS}
            assert_order(stage, workflow.jobs)


def planned(number: int) -> Workflow:
    """A chain of three, a group of eight after it, and one after all of these."""
    workflow = Workflow()
    before = None
    for link in range(3):
        before = workflow.plan(FaultsJob, f"{number} link {link}", after=before)
    parts = [workflow.plan(FaultsJob, f"{number} part {part}", after=before) for part in range(8)]
    workflow.plan(FaultsJob, f"{number} last", after=parts)
    return workflow


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_chains_and_groups_of_tasks_give_their_results_although_workers_are_killed(kind: Kind) -> None:
    with Stage("killed flows", kind=kind) as stage:
        crew = stage.start_workers(1 if kind.is_pool else 3, "--tasks=tests.acceptance.flow_tasks")
        crew.wait_until_ready()
        chains = [chain(count_up.s() for _ in range(5)).add() for _ in range(20)]
        chords = [chord((count_up.s(value) for value in range(10)), add_up.s()).add() for _ in range(20)]
        kill_at_random(stage, runs=20 * 5 + 20 * 11)

        for flow in (*chains, *chords):
            while not flow.wait(timeout=1):
                stage.crews[0].revive()

        assert [flow.get_result() for flow in chains] == [5] * 20
        assert [flow.get_result() for flow in chords] == [55] * 20
        for flow in (*chains, *chords):
            assert_order(stage, flow.jobs)
        for process in stage.crews[0].processes:
            assert process.is_running()
        stage.crews[0].stop()
        assert [str(problem) for problem in admin.check()] == []
