"""The options of a worker, as arguments and as class attributes: W1 to W19, W31 to W33, W35."""

from __future__ import annotations

import logging
import signal
from datetime import timedelta
from typing import Any

import pytest

from limpyd_jobs import Backoff, ConfigurationException, Error, Job, LimpydJobsException, Queue, Worker
from limpyd_jobs.retries import Retries
from limpyd_jobs.workers import LOGGER_NAME

from .base import work

pytestmark = pytest.mark.usefixtures("database")

PARAMETERS = (
    "queues",
    "callback",
    "queue_model",
    "error_model",
    "logger_name",
    "logger_level",
    "save_errors",
    "save_tracebacks",
    "max_loops",
    "max_duration",
    "terminate_gracefuly",
    "timeout",
    "fetch_priorities_delay",
    "fetch_delayed_delay",
    "requeue_times",
    "requeue_priority_delta",
    "requeue_delay_delta",
)


class OptionsQueue(Queue):
    pass


class OptionsError(Error):
    pass


class OptionsJob(Job):
    def run(self, queue: Any) -> str:
        return f"run of {self.identifier.hget()}"


def act(job: Any, queue: Any) -> str:
    return f"callback for {job.identifier.hget()}"


# Each option with a value that is not its default.
OTHERS: dict[str, Any] = {
    "queues": ["other"],
    "callback": act,
    "queue_model": OptionsQueue,
    "error_model": OptionsError,
    "logger_name": "test.options",
    "logger_level": logging.ERROR,
    "save_errors": False,
    "save_tracebacks": False,
    "max_loops": 3,
    "max_duration": 5,
    "terminate_gracefuly": False,
    "timeout": 2,
    "fetch_priorities_delay": 3,
    "fetch_delayed_delay": 4,
    "requeue_times": 6,
    "requeue_priority_delta": -7,
    "requeue_delay_delta": 8,
    "lease_seconds": 9,
}


def as_kept(name: str) -> Any:
    """What the attribute becomes, when it is given the value from OTHERS."""
    return timedelta(seconds=5) if name == "max_duration" else OTHERS[name]


# --- Queues


@pytest.mark.parametrize("queues", ["foo,bar", ["foo", "bar"], ("foo", "bar")], ids=["text", "list", "tuple"])
def test_w1_queues_are_a_text_with_commas_a_list_or_a_tuple(queues: Any) -> None:
    worker = Worker(queues)

    assert worker.queues == ["foo", "bar"]


def test_w1_queues_can_be_given_by_name() -> None:
    assert Worker(queues="foo").queues == ["foo"]


@pytest.mark.parametrize("queues", [None, "", [], ()])
def test_w1_without_queues_no_worker_is_made(queues: Any) -> None:
    with pytest.raises(LimpydJobsException, match="queue"):
        Worker(queues)


@pytest.mark.parametrize("queues", [12, b"foo", ["foo", ""], "foo,,bar", ["a,b"], ["a\nb"], ["a\0b"], [None], [1]])
def test_w1_queues_that_cannot_be_names_are_refused(queues: Any) -> None:
    with pytest.raises(ConfigurationException, match="queues"):
        Worker(queues)


def test_w1_the_queues_of_the_class_are_not_shared_between_workers() -> None:
    class SharedNamesWorker(Worker):
        queues = ["foo"]

    SharedNamesWorker().queues.append("bar")

    assert SharedNamesWorker().queues == ["foo"]


# --- Models


def test_w2_the_queue_model_is_queue_by_default() -> None:
    assert Worker("test").queue_model is Queue


def test_w3_the_error_model_is_error_by_default() -> None:
    assert Worker("test").error_model is Error


@pytest.mark.parametrize("value", [Job, object, "limpyd_jobs.models.Queue", Queue.get_queue])
def test_w2_what_is_no_queue_model_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationException, match="queue model"):
        Worker("test", queue_model=value)


@pytest.mark.parametrize("value", [Job, object, "limpyd_jobs.models.Error"])
def test_w3_what_is_no_error_model_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationException, match="error model"):
        Worker("test", error_model=value)


def test_w2_jobs_are_taken_from_the_queues_of_the_model() -> None:
    OptionsJob.add_job("one", "test")
    job = OptionsJob.add_job("two", "test", queue_model=OptionsQueue)

    work(1, queue_model=OptionsQueue)

    assert OptionsQueue.get_queue("test").success.lmembers() == [job.ident]
    assert Queue.count_waiting_jobs("test") == 1


def test_w3_errors_are_saved_in_the_model() -> None:
    Job.add_job("one", "test")

    work(1, error_model=OptionsError)

    assert len(OptionsError.collection()) == 1
    assert len(Error.collection()) == 0


# --- Logger


def test_w4_w23_the_logger_is_named_limpyd_jobs_by_default() -> None:
    worker = Worker("test")

    assert worker.logger_name == LOGGER_NAME == "limpyd-jobs"
    assert worker.logger is logging.getLogger("limpyd-jobs")


def test_w5_the_level_is_info_by_default() -> None:
    worker = Worker("test")

    assert worker.logger_level == worker.logger.level == logging.INFO


def test_w5_the_logger_gets_the_level_of_the_worker() -> None:
    worker = Worker("test", logger_name="test.level", logger_level=logging.ERROR)

    assert logging.getLogger("test.level").level == worker.logger.level == logging.ERROR


def test_w35_set_logger_is_called_by_the_constructor() -> None:
    class OwnLoggerWorker(Worker):
        def set_logger(self) -> None:
            self.logger = logging.getLogger("test.own")

    assert OwnLoggerWorker("test").logger.name == "test.own"


# --- Errors


def test_w6_w7_an_error_is_saved_with_its_traceback_by_default() -> None:
    Job.add_job("one", "test")

    work(1)

    (error,) = Error.collection().instances()
    assert error.message.hget() == "You must implement your own action"
    assert error.traceback.hget().startswith("Traceback (most recent call last)")
    assert "NotImplementedError" in error.traceback.hget()


def test_w6_without_save_errors_no_error_is_saved() -> None:
    job = Job.add_job("one", "test")

    work(1, save_errors=False)

    assert len(Error.collection()) == 0
    assert job.status.hget() == "e"
    assert Queue.get_queue("test").errors.lmembers() == [job.ident]


def test_w7_without_save_tracebacks_the_error_has_none() -> None:
    Job.add_job("one", "test")

    work(1, save_tracebacks=False)

    (error,) = Error.collection().instances()
    assert error.message.hget() == "You must implement your own action"
    assert error.traceback.hget() is None


# --- The defaults, arguments and class attributes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("save_errors", True, id="w6"),
        pytest.param("save_tracebacks", True, id="w7"),
        pytest.param("max_loops", 1000, id="w8"),
        pytest.param("max_duration", None, id="w9"),
        pytest.param("terminate_gracefuly", True, id="w10"),
        pytest.param("timeout", 30, id="w13"),
        pytest.param("fetch_priorities_delay", 25, id="w14"),
        pytest.param("fetch_delayed_delay", 25, id="w15"),
        pytest.param("requeue_times", 0, id="w16"),
        pytest.param("requeue_priority_delta", -1, id="w17"),
        pytest.param("requeue_delay_delta", 30, id="w18"),
    ],
)
def test_an_option_has_its_default(name: str, value: Any) -> None:
    assert getattr(Worker, name) == value
    assert getattr(Worker("test"), name) == value


@pytest.mark.parametrize("name", list(OTHERS))
def test_w19_an_option_is_an_argument(name: str) -> None:
    worker = Worker(**{"queues": "test", name: OTHERS[name]})

    assert getattr(worker, name) == as_kept(name)


@pytest.mark.parametrize("name", list(OTHERS))
def test_w19_an_option_is_a_class_attribute(name: str) -> None:
    worker_class = type("AttributeWorker", (Worker,), {"queues": ["test"], name: OTHERS[name]})

    assert getattr(worker_class(), name) == as_kept(name)


@pytest.mark.parametrize("name", list(OTHERS))
def test_w19_an_argument_wins_over_the_class_attribute(name: str) -> None:
    default = getattr(Worker, name)
    on_class = {"queues": "elsewhere", "max_duration": 77}.get(name, default)
    worker_class = type("LosingWorker", (Worker,), {"queues": ["test"], name: on_class})

    worker = worker_class(**{name: OTHERS[name]})

    assert getattr(worker, name) == as_kept(name)


def test_w19_a_false_argument_wins_over_a_true_attribute() -> None:
    class TrueWorker(Worker):
        save_errors = True
        requeue_times = 5
        requeue_delay_delta = 5

    worker = TrueWorker("test", save_errors=False, requeue_times=0, requeue_delay_delta=0)

    assert (worker.save_errors, worker.requeue_times, worker.requeue_delay_delta) == (False, 0, 0)


def test_w31_parameters_names_the_17_options() -> None:
    assert Worker.parameters == PARAMETERS


def test_w9_max_duration_is_kept_as_a_timedelta() -> None:
    assert Worker("test", max_duration=5).max_duration == timedelta(seconds=5)
    assert Worker("test", max_duration=0.5).max_duration == timedelta(milliseconds=500)
    assert Worker("test", max_duration=timedelta(minutes=1)).max_duration == timedelta(minutes=1)


@pytest.mark.parametrize("name", ["terminate_gracefuly", "terminate_gracefully"])
def test_w10_both_spellings_of_terminate_gracefully_are_accepted_as_argument(name: str) -> None:
    worker = Worker("test", **{name: False})

    assert worker.terminate_gracefuly is False
    assert worker.terminate_gracefully is False
    assert signal.getsignal(signal.SIGTERM) != worker.catch_end_signal


@pytest.mark.parametrize("name", ["terminate_gracefuly", "terminate_gracefully"])
def test_w10_both_spellings_of_terminate_gracefully_are_accepted_as_class_attribute(name: str) -> None:
    worker = type("SpeltWorker", (Worker,), {name: False})("test")

    assert worker.terminate_gracefuly is False
    assert signal.getsignal(signal.SIGTERM) != worker.catch_end_signal


@pytest.mark.parametrize("on_class", ["terminate_gracefuly", "terminate_gracefully"])
@pytest.mark.parametrize("argument", ["terminate_gracefuly", "terminate_gracefully"])
def test_w10_an_argument_in_either_spelling_wins_over_an_attribute_in_either(on_class: str, argument: str) -> None:
    worker = type("MixedWorker", (Worker,), {on_class: False})("test", **{argument: True})

    assert worker.terminate_gracefuly is True
    assert signal.getsignal(signal.SIGTERM) == worker.catch_end_signal


def test_w32_the_constructor_can_be_overridden() -> None:
    class OwnConstructorWorker(Worker):
        def __init__(self, queues: Any = None, colour: str = "", **kwargs: Any) -> None:
            super().__init__(queues, **kwargs)
            self.colour = colour

    worker = OwnConstructorWorker("test", colour="red", max_loops=5)

    assert (worker.queues, worker.colour, worker.max_loops) == (["test"], "red", 5)


def test_w32_an_unknown_argument_is_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="requeue_tmies"):
        Worker("test", requeue_tmies=5)


def test_a_more_option_of_a_subclass_is_accepted_when_it_is_in_parameters() -> None:
    class ColourWorker(Worker):
        parameters = (*Worker.parameters, "colour")
        colour = "blue"

    assert ColourWorker("test", colour="red").colour == "red"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_loops", -1),
        ("max_loops", "10"),
        ("max_loops", 1.5),
        ("max_duration", "long"),
        ("timeout", -1),
        ("timeout", "10"),
        ("timeout", float("nan")),
        ("requeue_times", -1),
        ("requeue_times", None.__class__),
        ("requeue_priority_delta", 0.5),
        ("requeue_delay_delta", -1),
        ("fetch_priorities_delay", -1),
        ("fetch_delayed_delay", "x"),
        ("lease_seconds", 0),
        ("callback", "not.a.function"),
        ("job_timeout", 0),
        ("job_timeout", "5"),
        ("backoff", "quick"),
        ("retry_on", "Late"),
        ("no_retry_on", 5),
    ],
)
def test_an_option_that_cannot_work_is_refused_with_its_name(name: str, value: Any) -> None:
    with pytest.raises(LimpydJobsException, match=name):
        Worker("test", **{name: value})


def test_what_a_worker_says_of_retries_is_made_uniform() -> None:
    worker = Worker("test", requeue_times=3, requeue_delay_delta=timedelta(minutes=1), backoff="1,10", retry_on=OSError)
    assert worker.default_retries == Retries(3, 60, Backoff(delays=(1, 10)), ("builtins.OSError",))
    assert Worker("test").default_retries == Retries(None, 30)


def test_what_a_worker_says_of_timeouts_is_in_seconds() -> None:
    assert Worker("test", job_timeout=timedelta(minutes=1)).run_defaults == {"job_timeout": 60}


def test_methods_of_a_worker_that_have_the_names_of_options_are_its_own() -> None:
    class OwnWorker(Worker):
        def backoff(self) -> int:
            return 5

        @property
        def job_timeout(self) -> int:
            return 6

    worker = OwnWorker("test")
    assert (worker.run_defaults, worker.backoff(), worker.job_timeout) == ({}, 5, 6)


# --- Callback


def test_w11_the_callback_is_execute_by_default() -> None:
    worker = Worker("test")

    assert worker.callback == worker.execute


def test_w11_a_callback_gets_the_job_and_the_queue() -> None:
    job = OptionsJob.add_job("one", "test")
    calls: list[Any] = []

    work(1, callback=lambda *args: calls.append(args))

    ((called_job, called_queue),) = calls
    assert type(called_job) is OptionsJob
    assert called_job.pk.get() == job.pk.get()
    assert called_queue.waiting.key == Queue.get_queue("test").waiting.key


def test_w11_a_function_on_the_class_is_a_callback_not_a_method() -> None:
    calls: list[str] = []

    def note(job: Any, queue: Any) -> None:
        calls.append(job.identifier.hget())

    OptionsJob.add_job("one", "test")

    work(1, worker_class=type("FunctionWorker", (Worker,), {"callback": note}))

    assert calls == ["one"]


def test_w11_a_static_method_on_the_class_is_a_callback() -> None:
    class StaticWorker(Worker):
        callback = staticmethod(act)

    OptionsJob.add_job("one", "test")

    assert work(1, worker_class=StaticWorker).callback is act


def test_w11_a_method_named_callback_gets_the_worker_too() -> None:
    calls: list[Any] = []

    class MethodWorker(Worker):
        def callback(self, job: Any, queue: Any) -> None:
            calls.append((self, job.identifier.hget()))

    OptionsJob.add_job("one", "test")

    worker = work(1, worker_class=MethodWorker)

    assert calls == [(worker, "one")]


# --- Signals


def test_w33_sigint_and_sigterm_are_plugged_by_the_constructor() -> None:
    worker = Worker("test")

    assert signal.getsignal(signal.SIGINT) == worker.catch_end_signal
    assert signal.getsignal(signal.SIGTERM) == worker.catch_end_signal


def test_w33_signals_are_left_alone_without_terminate_gracefully() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    Worker("test", terminate_gracefully=False)

    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_w33_handle_end_signal_can_be_overridden() -> None:
    calls: list[str] = []

    class OwnSignalsWorker(Worker):
        def handle_end_signal(self) -> None:
            calls.append("handle")

    OwnSignalsWorker("test")

    assert calls == ["handle"]


# --- The ends of what is accepted


CENTURY_SECONDS = 36525 * 24 * 3600


@pytest.mark.parametrize("value", [CENTURY_SECONDS, timedelta(seconds=CENTURY_SECONDS), 0])
def test_w9_a_max_duration_of_up_to_a_century_is_accepted(value: Any) -> None:
    worker = Worker("test", max_duration=value, max_loops=0)

    worker.run()

    assert worker.wanted_end_date == worker.start_date + worker.max_duration


@pytest.mark.parametrize("value", [CENTURY_SECONDS + 1, timedelta.max, 1e15, -1, timedelta(seconds=-1)])
def test_w9_a_max_duration_that_no_date_can_hold_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationException, match="max_duration"):
        Worker("test", max_duration=value)


@pytest.mark.parametrize(("priority", "delta"), [(2**53, 1), (2**53, 2**53), (-(2**53), -1), (-(2**53), -(2**53))])
def test_w18_a_requeued_job_keeps_a_priority_that_a_queue_can_have(priority: int, delta: int) -> None:
    job = OptionsJob.add_job("one", "test", priority=priority)

    def fail(job: Any, queue: Any) -> None:
        raise ValueError("boo")

    work(1, callback=fail, requeue_times=1, requeue_priority_delta=delta, requeue_delay_delta=0)

    assert job.hmget("status", "priority") == ["w", str(priority)]
    assert Queue.get_queue("test", priority).waiting.lmembers() == [job.ident]


# --- Several workers of one process, and its signals


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_w10_workers_of_one_process_give_the_signals_back_in_any_order(order: tuple[int, ...]) -> None:
    def program_handler(number: int, frame: Any) -> None:
        pass

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, program_handler)
    workers = [Worker("test", max_loops=0) for _ in range(3)]
    left = list(workers)

    for position in order:
        workers[position].run()
        left.remove(workers[position])

        expected = left[-1].catch_end_signal if left else program_handler
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == expected


def test_w10_a_handler_that_the_program_sets_while_a_worker_runs_is_kept() -> None:
    def program_handler(number: int, frame: Any) -> None:
        pass

    worker = Worker("test", max_loops=0)
    signal.signal(signal.SIGTERM, program_handler)

    worker.run()

    assert signal.getsignal(signal.SIGTERM) is program_handler
