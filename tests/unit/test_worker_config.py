"""The worker's command line, read in this process: options, imports, mistakes, titles. No Redis."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from optparse import make_option
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import limpyd
import pytest

from limpyd_jobs.models import Error, Queue
from limpyd_jobs.scripts import worker as script
from limpyd_jobs.utils import utcnow
from limpyd_jobs.version import EXACT_VERSION
from limpyd_jobs.workers import LOGGER_NAME, Worker, WorkerConfig, config
from limpyd_jobs.workers.title import JobCounts

OPTION_NAMES = [
    "pythonpath",
    "worker-config",
    "print-options",
    "processes",
    "reload",
    "dry-run",
    "queues",
    "queue-model",
    "error-model",
    "worker-class",
    "callback",
    "logger-name",
    "logger-level",
    "save-errors",
    "no-save-errors",
    "save-tracebacks",
    "no-save-tracebacks",
    "max-loops",
    "max-duration",
    "terminate-gracefuly",
    "no-terminate-gracefuly",
    "prefetch",
    "max-memory",
    "burst",
    "threads",
    "async",
    "concurrency",
    "isolate",
    "allow-unenforced-timeouts",
    "timeout",
    "fetch-priorities-delay",
    "fetch-delayed-delay",
    "requeue-times",
    "requeue-priority-delta",
    "requeue-delay-delta",
    "backoff",
    "retry-on",
    "no-retry-on",
    "save-result",
    "log-format",
    "metrics-port",
    "job-timeout",
    "lease-seconds",
    "max-recoveries",
    "stop-timeout",
    "job-modules",
    "tasks",
    "keep-success",
    "keep-errors",
    "heartbeat-file",
    "database",
    "no-title",
]


@pytest.fixture(autouse=True)
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles given to the process, which keeps its own."""
    found: list[str] = []
    monkeypatch.setattr(config, "setproctitle", found.append)
    return found


@pytest.fixture(autouse=True)
def undo() -> Iterator[None]:
    """Put back what workers and configs change: signal handlers, the logger, the path."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    logger = logging.getLogger(LOGGER_NAME)
    level, log_handlers, path = logger.level, list(logger.handlers), list(sys.path)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logger.setLevel(level)
    logger.handlers[:] = log_handlers
    sys.path[:] = path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module that can be imported; gives its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names: list[str] = []

    def write(source: str) -> str:
        name = f"written_for_a_test_{len(names)}"
        (tmp_path / f"{name}.py").write_text(source)
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def configure(*arguments: str, program: str = "test-script", cls: type[WorkerConfig] = WorkerConfig) -> WorkerConfig:
    return cls([program, *arguments])


def prepared(*arguments: str, program: str = "test-script", cls: type[WorkerConfig] = WorkerConfig) -> WorkerConfig:
    found = configure("--queues=foo", *arguments, program=program, cls=cls)
    found.prepare_worker()
    return found


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command line is refused with: the last line of stderr, without the program's name."""

    def refuse(*arguments: str, do: Callable[..., Any] = prepared) -> str:
        with pytest.raises(SystemExit) as stopped:
            do(*arguments)
        assert stopped.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("Usage: test-script [options]\n\nRun a worker using redis-limpyd-jobs\n")
        assert captured.err.count("\n") == 5, "the usage, and one line"
        prefix, _, message = captured.err.splitlines()[-1].partition("error: ")
        assert prefix == "test-script: "
        return message

    return refuse


def printed_options(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    lines = capsys.readouterr().out.splitlines()
    return dict(line.removeprefix(" - ").split(" = ", 1) for line in lines if line.startswith(" - "))


# --- reading the arguments ---


def test_c1_the_help_tells_all_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        configure("--help")

    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: test-script [options]\n\nRun a worker using redis-limpyd-jobs\n\nOptions:\n")
    for name in (*OPTION_NAMES, "terminate-gracefully", "no-terminate-gracefully", "version", "help"):
        assert f"--{name}" in text
    for metavar in ("--queues=QUEUES", "--max-loops=MAX_LOOPS", "--database=DATABASE", "--callback=CALLBACK"):
        assert metavar in text


def test_c23_the_version_is_ours_and_limpyds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        configure("--version")

    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown == f"test-script (redis-limpyd-jobs {EXACT_VERSION}, redis-limpyd {limpyd.EXACT_VERSION})\n"


def test_c24_the_short_help_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        configure("-h")

    assert stopped.value.code == 0
    assert "--queues=QUEUES" in capsys.readouterr().out


def test_c6_options_that_are_not_given_are_none() -> None:
    options = vars(configure("--queues=queue1,queue2").options)

    given = {name: value for name, value in options.items() if value is not None}
    assert given == {
        "queues": "queue1,queue2",
        "queue_model": Queue,
        "error_model": Error,
        "worker_class": Worker,
        "update_title": True,
    }
    named = ("no-title", "no-retry-on")
    assert len(options) == len([name for name in OPTION_NAMES if not name.startswith("no-") or name in named])


def test_the_program_may_be_left_out_of_the_arguments() -> None:
    found = WorkerConfig(["--queues=foo"])

    assert found.options.queues == "foo"
    assert found.argv == ["--queues=foo"]
    assert found.prog_name == os.path.basename(sys.argv[0])


def test_the_arguments_are_by_default_those_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/test-script", "--queues=foo"])

    found = WorkerConfig()

    assert (found.prog_name, found.args, found.options.queues) == ("test-script", ["/somewhere/test-script"], "foo")
    assert found.argv == sys.argv


@pytest.mark.parametrize("name", ["save_errors", "save_tracebacks", "terminate_gracefuly"])
def test_c13_c14_c17_a_switch_can_be_turned_on_and_off(name: str) -> None:
    option = name.replace("_", "-")

    assert getattr(configure(f"--{option}").options, name) is True
    assert getattr(configure(f"--no-{option}").options, name) is False


def test_c17_gracefully_may_be_spelt_well() -> None:
    assert configure("--terminate-gracefully").options.terminate_gracefuly is True
    assert prepared("--no-terminate-gracefully").worker.terminate_gracefuly is False


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--max-loops=100", "max_loops", 100),
        ("--max-loops=0", "max_loops", 0),
        ("--timeout=0", "timeout", 0),
        ("--timeout=0.5", "timeout", 0.5),
        ("--fetch-priorities-delay=20", "fetch_priorities_delay", 20),
        ("--fetch-delayed-delay=1.5", "fetch_delayed_delay", 1.5),
        ("--requeue-times=5", "requeue_times", 5),
        ("--requeue-priority-delta=-2", "requeue_priority_delta", -2),
        ("--requeue-delay-delta=0", "requeue_delay_delta", 0),
        ("--backoff=exponential:1:3600:jitter", "backoff", "exponential:1:3600:jitter"),
        ("--retry-on=OSError,my.module.MyError", "retry_on", "OSError,my.module.MyError"),
        ("--no-retry-on=ValueError", "no_retry_on", "ValueError"),
        ("--save-result=1h", "save_result", "1h"),
        ("--log-format=json", "log_format", "json"),
        ("--metrics-port=9808", "metrics_port", "9808"),
        ("--job-timeout=2.5", "job_timeout", 2.5),
        ("--logger-name=limpyd-jobs.mails", "logger_name", "limpyd-jobs.mails"),
    ],
)
def test_c11_c15_c18_to_c20_values_reach_the_worker(argument: str, name: str, value: Any) -> None:
    found = prepared(argument)

    assert getattr(found.options, name) == value
    assert getattr(found.worker, name) == value
    assert type(getattr(found.worker, name)) is type(value)


def test_c16_the_max_duration_is_in_seconds() -> None:
    assert prepared("--max-duration=90").worker.max_duration == timedelta(seconds=90)
    assert prepared("--max-duration=0.25").worker.max_duration == timedelta(seconds=0.25)


@pytest.mark.parametrize("text", ["DEBUG", "debug", "10"])
def test_c12_a_logger_level_is_a_name_or_a_number(text: str) -> None:
    found = prepared(f"--logger-level={text}")

    assert found.options.logger_level == found.logger_level == logging.DEBUG
    assert found.worker.logger.level == logging.DEBUG


@pytest.mark.parametrize("text", ["FOO", "-3", "1.5", "", "Level 10"])
def test_c12_a_bad_logger_level_is_refused(text: str, refusal: Callable[..., str]) -> None:
    assert refusal(f"--logger-level={text}") == f"Invalid logger-level {text}"


def test_c25_only_what_is_given_is_handed_to_the_worker() -> None:
    found = configure(
        "--queues=foo",
        "--max-loops=5",
        "--no-save-errors",
        "--dry-run",
        "--print-options",
        "--no-title",
        "--pythonpath=x",
    )

    assert found.prepare_worker_options() == {
        "queues": "foo",
        "max_loops": 5,
        "save_errors": False,
        "queue_model": Queue,
        "error_model": Error,
    }


def test_c25_an_option_wins_over_the_worker_class(module: Callable[[str], str]) -> None:
    name = module(
        "from limpyd_jobs import Error, Queue\nfrom limpyd_jobs.workers import Worker\n"
        "class MyQueue(Queue):\n    namespace = 'c25'\n"
        "class MyWorker(Worker):\n    queues = ['a', 'b']\n    queue_model = MyQueue\n    max_loops, timeout = 5, 7\n"
    )

    found = configure(f"--worker-class={name}.MyWorker", "--max-loops=6")
    found.prepare_worker()

    assert (found.worker.max_loops, found.worker.timeout, found.worker.queues) == (6, 7, ["a", "b"])
    assert found.options.queue_model is found.worker.queue_model is sys.modules[name].MyQueue


def test_c25_a_subclass_adds_an_option_for_its_worker(module: Callable[[str], str]) -> None:
    name = module(
        "from limpyd_jobs.workers import Worker\n"
        "class MyWorker(Worker):\n    parameters = (*Worker.parameters, 'colour')\n    colour = 'blue'\n"
    )

    class MyConfig(WorkerConfig):
        option_list = (*WorkerConfig.option_list, make_option("--colour"))

    assert prepared(f"--worker-class={name}.MyWorker", cls=MyConfig).worker.colour == "blue"
    assert prepared(f"--worker-class={name}.MyWorker", "--colour=red", cls=MyConfig).worker.colour == "red"


# --- imports ---


def test_c7_to_c10_classes_and_the_callback_are_imported(module: Callable[[str], str]) -> None:
    name = module(
        "from limpyd_jobs import Error, Queue\nfrom limpyd_jobs.workers import Worker\n"
        "class MyQueue(Queue):\n    namespace = 'c7'\n"
        "class MyError(Error):\n    namespace = 'c7'\n"
        "class MyWorker(Worker): pass\n"
        "def callback(job, queue): pass\n"
    )

    found = prepared(
        f"--queue-model={name}.MyQueue",
        f"--error-model={name}.MyError",
        f"--worker-class={name}.MyWorker",
        f"--callback={name}.callback",
    )

    written: Any = sys.modules[name]
    assert found.options.queue_model is found.worker.queue_model is written.MyQueue
    assert found.options.error_model is found.worker.error_model is written.MyError
    assert found.options.worker_class is type(found.worker) is written.MyWorker
    assert found.options.callback is found.worker.callback is written.callback


@pytest.mark.parametrize("option", ["callback", "queue-model", "error-model", "worker-class"])
def test_c34_what_does_not_import_is_refused(
    option: str, module: Callable[[str], str], refusal: Callable[..., str]
) -> None:
    name = module("")
    start = f'Unable to import "{option.replace("-", "_")}": '

    missing = refusal(f"--{option}=no_such_module.thing")
    assert missing.startswith(f"{start}No module named 'no_such_module'")
    assert "--pythonpath" in missing
    assert refusal(f"--{option}={name}.thing") == f"{start}module '{name}' has no attribute 'thing'"
    assert refusal(f"--{option}={name}") == f"{start}'{name}' is not a dotted path"
    assert refusal(f"--{option}=.{name}.thing").startswith(start)
    assert refusal(f"--{option}={name}..thing").startswith(start)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "x = 1\nint('many\\nlines')\n",
            "ValueError: invalid literal for int() with base 10: 'many\\nlines' ({path}:2)",
        ),
        ("raise Exception('many\\n\\nlines')\n", "Exception: many lines ({path}:1)"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' ({path}:1)"),
        ("\nraise SystemExit(0)\n", "SystemExit: 0 ({path}:2)"),
    ],
)
def test_c34_a_module_that_raises_is_named_with_the_line(
    source: str, message: str, tmp_path: Path, module: Callable[[str], str], refusal: Callable[..., str]
) -> None:
    name = module(source)

    found = refusal(f"--callback={name}.callback")

    assert found == f'Unable to import "callback": {message.format(path=tmp_path / f"{name}.py")}'


def test_c34_a_syntax_error_is_named_with_its_line(
    tmp_path: Path, module: Callable[[str], str], refusal: Callable[..., str]
) -> None:
    name = module("x = 1\ndef (\n")

    found = refusal(f"--callback={name}.callback")

    assert found.startswith('Unable to import "callback": SyntaxError: ')
    assert found.endswith(f"({tmp_path / f'{name}.py'}:2)")


def test_c34_a_callback_must_be_callable(module: Callable[[str], str], refusal: Callable[..., str]) -> None:
    assert refusal(f"--callback={module('callback = 3')}.callback") == "The callback is not callable"


@pytest.mark.parametrize(
    ("option", "base"),
    [
        ("queue-model", "limpyd_jobs.models.Queue"),
        ("error-model", "limpyd_jobs.models.Error"),
        ("worker-class", "limpyd_jobs.workers.Worker"),
    ],
)
def test_c7_to_c9_what_is_not_such_a_class_is_refused(
    option: str, base: str, module: Callable[[str], str], refusal: Callable[..., str]
) -> None:
    name = module("thing = 3\nclass Other: pass\n")

    for path in (f"{name}.thing", f"{name}.Other"):
        assert refusal(f"--{option}={path}") == f"The {option} argument ({path}) must be {base} or a subclass"


# --- mistakes ---


@pytest.mark.parametrize("option", ["max-loops", "requeue-times", "requeue-priority-delta"])
def test_c34_an_integer_is_refused_when_it_is_none(option: str, refusal: Callable[..., str]) -> None:
    assert refusal(f"--{option}=foo") == f"option --{option}: invalid integer value: 'foo'"
    assert refusal(f"--{option}=1.5") == f"option --{option}: invalid integer value: '1.5'"


@pytest.mark.parametrize(
    "option", ["max-duration", "timeout", "fetch-priorities-delay", "fetch-delayed-delay", "requeue-delay-delta"]
)
@pytest.mark.parametrize("text", ["foo", "", "nan", "inf", "1e300"])
def test_c34_seconds_are_refused_when_they_are_no_number(option: str, text: str, refusal: Callable[..., str]) -> None:
    accepted = "(a number of seconds, 0.5 is accepted too)"

    assert refusal(f"--{option}={text}") == f"option --{option}: invalid integer value: {text!r} {accepted}"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--max-loops=-1", "The max-loops argument (-1) must be a positive integer (including 0)"),
        ("--max-duration=-1", "The max-duration argument (-1) must be a positive integer (including 0) or float"),
        ("--timeout=-1", "The timeout argument (-1) must be a positive integer (including 0) or float"),
        ("--timeout=-0.5", "The timeout argument (-0.5) must be a positive integer (including 0) or float"),
        ("--fetch-priorities-delay=0", "The fetch-priorities-delay argument (0) must be a positive integer or float"),
        ("--fetch-delayed-delay=-1", "The fetch-delayed-delay argument (-1) must be a positive integer or float"),
        ("--threads=0", "The threads argument (0) must be a positive integer"),
        ("--concurrency=0", "The concurrency argument (0) must be a positive integer"),
        ("--requeue-times=-1", "The requeue-times argument (-1) must be a positive integer (including 0)"),
        (
            "--requeue-delay-delta=-1",
            "The requeue-delay-delta argument (-1) must be a positive integer (including 0) or float",
        ),
    ],
)
def test_c34_negative_numbers_are_refused(argument: str, message: str, refusal: Callable[..., str]) -> None:
    assert refusal(argument) == message


def test_c34_unknown_options_and_missing_values_are_refused(refusal: Callable[..., str]) -> None:
    assert refusal("--foo") == "no such option: --foo"
    assert refusal("--callback") == "--callback option requires 1 argument"


def test_c6_arguments_that_are_not_options_are_refused(refusal: Callable[..., str]) -> None:
    assert refusal("bar", "baz") == "Unexpected arguments, only options are accepted: 'bar' 'baz'"


def test_c6_a_subclass_may_accept_arguments() -> None:
    class MyConfig(WorkerConfig):
        def check_arguments(self, arguments: Any) -> None:
            pass

    assert configure("bar", cls=MyConfig).args == ["test-script", "bar"]


@pytest.mark.parametrize("argument", [[], ["--queues="]])
def test_c6_queues_are_needed(argument: list[str], refusal: Callable[..., str]) -> None:
    def prepare(*arguments: str) -> None:
        configure(*arguments).prepare_worker()

    assert "queue" in refusal(*argument, do=prepare)


@pytest.mark.parametrize("text", ["foo,,bar", "a\nb", "a\0b", ","])
def test_c6_names_that_no_queue_can_have_are_refused(text: str, refusal: Callable[..., str]) -> None:
    message = refusal(f"--queues={text}")

    assert repr(text) in message


# --- the database ---


def test_c21_the_database_is_read_as_settings() -> None:
    assert configure("--database=localhost:7777:3").database_config == {"host": "localhost", "port": 7777, "db": 3}
    assert configure("--database=unix:///tmp/x.sock?db=2").database_config == {
        "unix_socket_path": "/tmp/x.sock",
        "db": 2,
    }


def test_c21_without_a_database_the_models_stay_where_they_are() -> None:
    found = configure()

    assert found.options.database is None
    assert found.database_config is None


def test_c21_the_environment_names_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMPYD_JOBS_DATABASE", "redis://localhost:7777/3")

    assert configure().database_config == {"host": "localhost", "port": 7777, "db": 3}
    assert configure("--database=localhost:7778:4").database_config == {"host": "localhost", "port": 7778, "db": 4}


@pytest.mark.parametrize(
    "text", ["foo", "localhost:a:b", "http://localhost", "redis://:secret@localhost:x/0", "redis://x:secret"]
)
def test_c21_a_database_that_cannot_be_read_is_refused(
    text: str, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(f"--database={text}")
    monkeypatch.setenv("LIMPYD_JOBS_DATABASE", text)
    from_environment = refusal()

    assert message.startswith("Invalid database ")
    assert "secret" not in message + from_environment
    assert from_environment == f"{message} (from the environment variable LIMPYD_JOBS_DATABASE)"


# Each holds the password s3cr3t, in a form that redis-py, version 2 or a hurried user may write.
SECRETS = [
    "redis://:s3cr3t@h/0",
    "redis://bob:s3cr3t@h:6379/0",
    "rediss://bob:s3cr3t@h:6379/0",
    "REDIS://bob:s3cr3t@h:6379/0",
    "redis://:s3cr3t with spaces@h/0",
    "redis://:a'quoted\"s3cr3t@h/0",
    "redis://:s3cr3t@more@h/0",
    "redis://:s3cr3t/more@h/0",
    "redis://:s3cr3t\n@h/0",
    "redis://h/0?password=s3cr3t",
    "redis://h/0?db=1&PASSWORD=s3cr3t",
    "unix:///tmp/x.sock?password=s3cr3t",
    "unix://bob:s3cr3t@/tmp/x.sock",
    "bob:s3cr3t@h:6379:0",
    "http://bob:s3cr3t@h/0",
]
PLACES: dict[str, Callable[[str], list[str]]] = {
    "as the database": lambda secret: [f"--database={secret}"],
    "as the database, apart": lambda secret: ["--database", secret],
    "as the database, abbreviated": lambda secret: [f"--data={secret}"],
    "as an argument": lambda secret: [secret],
    "as a level": lambda secret: [f"--logger-level={secret}"],
    "as a level, apart": lambda secret: ["--logger-level", secret],
    "as a number": lambda secret: [f"--max-loops={secret}"],
    "as seconds": lambda secret: [f"--timeout={secret}"],
    "as a callback": lambda secret: [f"--callback={secret}"],
    "as a class": lambda secret: [f"--worker-class={secret}"],
    "as a config": lambda secret: [f"--worker-config={secret}"],
    "as an unknown option": lambda secret: [f"--databse={secret}"],
    "as the value of a switch": lambda secret: [f"--no-title={secret}"],
    "before a mistake": lambda secret: [f"--database={secret}", "--max-loops=x"],
    "with its own title": lambda secret: [f"--database={secret}", "--no-title"],
    "in the environment": lambda secret: [],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("secret", SECRETS)
def test_c21_a_password_is_shown_in_no_title_and_in_no_line(
    secret: str,
    place: str,
    titles: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if place == "in the environment":
        monkeypatch.setenv("LIMPYD_JOBS_DATABASE", secret)
    monkeypatch.setattr(WorkerConfig, "prepare_models", lambda self: None)
    monkeypatch.setattr(WorkerConfig, "run", lambda self: None)

    with contextlib.suppress(SystemExit):
        script.main(["test-script", "--queues=foo", "--print-options", *PLACES[place](secret)])

    captured = capsys.readouterr()
    assert "s3cr3t" not in captured.out + captured.err
    assert "s3cr3t" not in " ".join(titles)


@pytest.mark.parametrize("secret", SECRETS)
def test_c22_a_password_on_the_command_line_is_hidden_at_once_although_no_title_is_wanted(
    secret: str, titles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        configure("--no-title", f"--database={secret}")

    assert titles, "the command line would show it as long as the process runs"


def test_c22_a_command_line_without_a_password_is_left_as_it_is(titles: list[str]) -> None:
    configure("--no-title", "--database=redis://h:6379/0", "--queues=foo")

    assert titles == []


# --- printing the options ---


def test_c4_the_options_in_force_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = configure(
        "--queues=foo,bar", "--dry-run", "--database=localhost:7777:0", "--max-duration=12", "--no-save-errors"
    )
    found.prepare_worker()

    found.print_options()

    assert capsys.readouterr().out.splitlines() == [
        "The script is running with the following options:",
        " - processes = None",
        " - reload = None",
        " - dry-run = True",
        " - worker-config = <class 'limpyd_jobs.workers.WorkerConfig'>",
        " - database = localhost:7777:0",
        " - worker-class = <class 'limpyd_jobs.workers.Worker'>",
        "The worker will run with the following options:",
        " - queues = foo,bar",
        ' - callback = <jobs "run" method>',
        " - queue-model = <class 'limpyd_jobs.models.Queue'>",
        " - error-model = <class 'limpyd_jobs.models.Error'>",
        " - logger-name = limpyd-jobs",
        " - logger-level = 20",
        " - save-errors = False",
        " - save-tracebacks = True",
        " - max-loops = 1000",
        " - max-duration = 0:00:12",
        " - terminate-gracefuly = True",
        " - timeout = 30",
        " - fetch-priorities-delay = 25",
        " - fetch-delayed-delay = 25",
        " - requeue-times = 0",
        " - requeue-priority-delta = -1",
        " - requeue-delay-delta = 30",
        " - lease-seconds = 30",
        " - max-recoveries = 3",
        " - stop-timeout = None",
        " - job-modules = ",
        " - tasks = ",
        " - keep-success = None",
        " - keep-errors = None",
        " - prefetch = 0",
        " - max-memory = None",
        " - burst = False",
        " - threads = 1",
        " - isolate = False",
        " - allow-unenforced-timeouts = False",
        " - job-timeout = None",
        " - backoff = None",
        " - retry-on = None",
        " - no-retry-on = None",
        " - save-result = None",
        " - log-format = text",
        " - metrics-port = None",
        " - heartbeat-file = None",
    ]


def test_c4_they_can_be_printed_before_the_worker_exists(capsys: pytest.CaptureFixture[str]) -> None:
    configure("--queues=foo", "--max-loops=5").print_options()

    found = printed_options(capsys)
    assert (found["queues"], found["max-loops"], found["timeout"]) == ("foo", "5", "30")
    assert found["callback"] == '<jobs "run" method>'


def test_c4_the_callback_is_the_real_one(module: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    name = module(
        "def callback(job, queue): pass\nclass Thing:\n    def __call__(self, job, queue): pass\nthing = Thing()\n"
    )

    prepared(f"--callback={name}.callback").print_options()
    assert printed_options(capsys)["callback"] == f"{name}.callback"
    prepared(f"--callback={name}.thing").print_options()
    assert f"{name}.Thing" in printed_options(capsys)["callback"]


def test_c4_an_overridden_execute_is_the_callback(
    module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = module("from limpyd_jobs import Worker\nclass MyWorker(Worker):\n    def execute(self, job, queue): pass\n")

    prepared(f"--worker-class={name}.MyWorker").print_options()

    assert printed_options(capsys)["callback"] == f"{name}.MyWorker.execute"


def test_c4_the_parameters_of_the_worker_class_are_printed(
    module: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = module(
        "from limpyd_jobs import Worker\n"
        "class MyWorker(Worker):\n    parameters = (*Worker.parameters, 'own_option')\n    own_option = 'blue'\n"
    )

    prepared(f"--worker-class={name}.MyWorker").print_options()

    assert printed_options(capsys)["own-option"] == "blue"


@pytest.mark.parametrize("how", ["argument", "environment"])
@pytest.mark.parametrize(
    "url",
    [
        "redis://me:secret@localhost:7777/0",
        "redis://localhost:7777/0?password=secret",
        "rediss://:secret@localhost:7777/0?ssl_password=secret",
        "unix://me:secret@/tmp/x.sock",
    ],
)
def test_c4_a_password_is_never_printed(
    url: str, how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, titles: list[str]
) -> None:
    if how == "environment":
        monkeypatch.setenv("LIMPYD_JOBS_DATABASE", url)

    prepared(*([f"--database={url}"] if how == "argument" else [])).print_options()

    shown = capsys.readouterr().out
    assert "secret" not in shown + "".join(titles)
    assert "localhost:7777" in shown or "/tmp/x.sock" in shown


# --- the logger ---


def test_c31_a_logger_without_a_handler_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "limpyd-jobs-c31"
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "propagate", False)  # pytest has a handler at the root

    prepared(f"--logger-name={name}")
    prepared(f"--logger-name={name}")

    (handler,) = logger.handlers
    logger.removeHandler(handler)
    assert type(handler) is logging.StreamHandler
    record = logging.LogRecord(name, logging.WARNING, "", 0, "message", (), None)
    record.process = 19122
    assert handler.format(record) == f"[19122] {handler.formatter.formatTime(record)} ({name}) WARNING  message"  # type: ignore[union-attr]


def test_c31_a_logger_with_a_handler_above_it_keeps_it() -> None:
    name = "limpyd-jobs-c31-above"
    parent = logging.getLogger(name)
    handler = logging.NullHandler()
    parent.addHandler(handler)

    prepared(f"--logger-name={name}.child")

    assert logging.getLogger(f"{name}.child").handlers == []
    assert parent.handlers == [handler]


# --- the title of the process ---


class CountingWorker(Worker):
    """A worker whose jobs are counted without Redis."""

    id = "038480"
    asked = 0

    def count_waiting_jobs(self) -> int:
        self.asked += 1
        return 10

    def count_delayed_jobs(self) -> int:
        return 2


class CountingConfig(WorkerConfig):
    def do_imports(self) -> None:
        super().do_imports()
        self.options.worker_class = CountingWorker


def counting(*arguments: str, program: str = "test-script") -> WorkerConfig:
    return prepared(*arguments, program=program, cls=CountingConfig)


def ran_for(worker: Any, seconds: float) -> None:
    worker.start_date = worker.start_date or utcnow()
    worker.end_date = worker.start_date + timedelta(seconds=seconds)


def test_c27_before_it_runs_the_title_says_init(titles: list[str]) -> None:
    found = counting("--queues=foo,bar")

    assert found.get_proc_title() == "test-script [init] queues=foo,bar"
    assert set(titles) == {"test-script [init] queues=foo,bar"}


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("limpyd-jobs-worker", "limpyd-jobs-worker#038480"),
        ("/usr/bin/limpyd-jobs-worker", "limpyd-jobs-worker#038480"),
        ("scripts/worker.py", "worker#038480"),
        ("test-script", "test-script"),
        ("worker.pyz", "worker.pyz"),
        ("py", "py"),
    ],
)
def test_c27_the_number_of_the_worker_follows_our_name_and_that_of_python_files(program: str, shown: str) -> None:
    assert counting(program=program).get_proc_title() == f"{shown} [init] queues=foo"


def test_c27_before_the_worker_exists_the_number_is_that_of_the_process(titles: list[str]) -> None:
    configure("--queues=foo", program="limpyd-jobs-worker")

    assert titles == [f"limpyd-jobs-worker#{os.getpid()} [init] queues=foo"]


def test_c28_at_the_start_the_title_has_counts_and_no_duration() -> None:
    found = counting()
    found.worker.start_date = utcnow()
    found.worker.status = "starting"

    assert found.get_proc_title() == "test-script [starting] queues=foo loop=0/1000 waiting=10 delayed=2"


def test_c29_a_running_worker_shows_how_long_it_runs() -> None:
    found = counting()
    found.worker.status, found.worker.num_loops = "running", 1
    ran_for(found.worker, 15.2)

    assert (
        found.get_proc_title() == "test-script [running] queues=foo loop=1/1000 waiting=10 delayed=2 duration=0:00:15"
    )


def test_c29_the_duration_is_shown_with_its_limit() -> None:
    found = counting("--max-duration=60")
    found.worker.status = "waiting"
    ran_for(found.worker, 15.2)

    assert found.get_proc_title().endswith(" duration=0:00:15/0:01:00")


def test_c30_a_worker_that_must_end_says_so() -> None:
    found = counting()
    found.worker.status, found.worker.end_forced = "running", True

    assert found.get_proc_title().startswith("test-script [running - ending] queues=foo loop=0/1000 ")


def test_c30_the_title_follows_the_status_of_the_worker(titles: list[str]) -> None:
    found = counting()
    titles.clear()

    for status in ("starting", "waiting", "running", "terminated"):
        found.worker.set_status(status)

    assert [title.split()[1] for title in titles] == ["[starting]", "[waiting]", "[running]", "[terminated]"]


def test_c22_without_a_title_the_process_keeps_its_own(titles: list[str]) -> None:
    found = counting("--no-title")

    found.worker.set_status("starting")

    assert found.update_title is False
    assert titles == []
    assert found.worker.asked == 0


def test_c28_a_count_that_fails_leaves_a_title_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> int:
        raise OSError("gone")

    monkeypatch.setattr(CountingWorker, "count_delayed_jobs", fail)
    found = counting()

    found.worker.set_status("starting")

    assert found.get_proc_title() == "test-script [starting] queues=foo loop=0/1000"


# --- what the counts of a title cost ---


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counted:
    """A worker that knows how many times its jobs were counted, and an hour's titles of it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.counts = JobCounts(clock=self.clock)
        self.counts.may_be_old = True
        self.times = 0
        self.worker = SimpleNamespace(
            status="starting", num_loops=0, count_waiting_jobs=self._count, count_delayed_jobs=lambda: 0
        )

    def _count(self) -> int:
        self.times += 1
        return self.times

    def tell(self, status: str, num_loops: int = 0, after: float = 0.0) -> Any:
        self.clock.now += after
        self.worker.status, self.worker.num_loops = status, num_loops
        return self.counts.get(self.worker)


def test_c28_jobs_are_counted_at_the_start_the_first_job_and_the_end() -> None:
    counted = Counted()

    assert counted.tell("starting") == (1, 0)
    assert counted.tell("waiting") == (1, 0)
    assert counted.tell("running", 0) == (1, 0)
    assert counted.tell("running", 1) == (2, 0)
    assert counted.tell("waiting", 1) == (2, 0)
    assert counted.tell("terminated", 1) == (3, 0)


def test_c29_a_busy_worker_counts_once_a_second() -> None:
    counted = Counted()
    counted.tell("starting")
    counted.tell("running", 1)
    before = counted.times

    for loop in range(2, 502):
        counted.tell("running", loop, after=0.01)
        counted.tell("waiting", loop)

    assert counted.times - before == pytest.approx(5, abs=1)


def test_c29_an_idle_worker_counts_once_more_and_then_never() -> None:
    counted = Counted()
    counted.tell("starting")
    counted.tell("running", 1)
    counted.tell("waiting", 1)
    before = counted.times

    for _ in range(100):
        counted.tell("waiting", 1, after=30)

    assert counted.times - before == 1


def test_c29_a_title_that_is_asked_for_counts_now() -> None:
    found = counting()
    found.worker.status = "running"

    found.get_proc_title()
    found.get_proc_title()

    assert found.worker.asked == 2


def test_c29_a_count_that_fails_is_not_tried_again_at_once() -> None:
    counted = Counted()

    def fail() -> int:
        counted.times += 1
        raise OSError("gone")

    counted.worker.count_waiting_jobs = fail

    assert [counted.tell("starting"), counted.tell("waiting"), counted.tell("waiting")] == [None, None, None]
    assert counted.times == 1


# --- the script ---


def test_c2_the_directories_of_the_python_path_come_first_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("egg1", "egg2", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)

    with pytest.raises(SystemExit):
        script.main(
            ["test-script", "--pythonpath", "other", "--version", f"--pythonpath={tmp_path}/egg*", "--pythonpath=no"]
        )

    added = [str(tmp_path / name) for name in ("other", "egg1", "egg2", "no")]
    assert sys.path == added + before


def test_c3_a_config_class_that_does_not_import_is_refused(
    refusal: Callable[..., str], module: Callable[[str], str]
) -> None:
    def run(*arguments: str) -> None:
        script.main(["test-script", *arguments])

    name = module("class Other: pass\n")

    message = refusal("--worker-config=no_such_module.Config", do=run)
    other = refusal(f"--worker-config={name}.Other", do=run)

    assert message.startswith("Unable to import \"worker_config\": No module named 'no_such_module'")
    assert other == f"The worker-config argument ({name}.Other) must be limpyd_jobs.workers.WorkerConfig or a subclass"


def test_c2_an_option_without_its_value_is_refused(refusal: Callable[..., str]) -> None:
    def run(*arguments: str) -> None:
        script.main(["test-script", *arguments])

    assert refusal("--queues=foo", "--pythonpath", do=run) == "--pythonpath option requires 1 argument"
    assert refusal("--queues=foo", "--worker-config", do=run) == "--worker-config option requires 1 argument"
