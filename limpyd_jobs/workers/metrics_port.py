"""Metrics for Prometheus, shown by a worker."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from ..exceptions import ConfigurationException, InvalidArgument
from ..utils import parse_listen

TRY_AGAIN_SECONDS = 5.0


def check_metrics_port(value: Any) -> None:
    """See whether a worker can show metrics there.

    Raises:
        ConfigurationException: it is no port, or prometheus_client is not installed.
    """
    try:
        parse_listen("metrics_port", value)
    except InvalidArgument as error:
        raise ConfigurationException(f"Invalid metrics_port: {value!r}: must be {error.accepted}") from None
    if find_spec("prometheus_client") is None:
        raise ConfigurationException(
            "metrics_port needs the library prometheus-client: pip install 'redis-limpyd-jobs[metrics]'"
        )


class MetricsPort:
    """Shows the metrics of a namespace, from a thread.

    All exporters answer the same. So when somebody else listens there, such as another worker of the same pool, that
    one serves for all, and this one takes over when it ends.

    Args:
        listen: the option `metrics_port`.
        log: called with a message and a level.
    """

    def __init__(self, listen: Any, queue_model: Any, log: Callable[[str, str], None]) -> None:
        self._listen, self._queue_model, self._log = listen, queue_model, log
        self._must_end = threading.Event()
        self._has_complained = False
        self.url: str | None = None
        self._thread = threading.Thread(target=self._run, name="limpyd-jobs-metrics", daemon=True)

    def start(self) -> None:
        """Begin to listen, soon."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._must_end.set()
        self._thread.join()

    def _run(self) -> None:
        from ..admin.prometheus import serve  # takes its time, and is needed here alone

        server = None
        while server is None and not self._must_end.is_set():
            try:
                server = serve(self._listen, self._queue_model)
            except OSError as error:
                self._complain(error)
                self._must_end.wait(TRY_AGAIN_SECONDS)
        if server is not None:
            self.url = server.url
            self._log(f"Metrics are at {server.url}", "info")
            self._must_end.wait()
            server.stop()

    def _complain(self, error: OSError) -> None:
        if not self._has_complained:
            self._has_complained = True
            is_taken = error.errno == errno.EADDRINUSE  # most often by a worker beside this one
            message = f"This worker does not show metrics at {self._listen}, but tries again: {error}"
            self._log(message, "info" if is_taken else "error")
