"""The mails of a shop, sent by two worker processes: a small program with all of limpyd_jobs in it.

    .venv/bin/python example.py

It runs on a private Redis server in a temporary directory, or on the database that the environment variable
LIMPYD_JOBS_DATABASE names; there it only adds records of its own, under keys that begin with `example:`.
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone

from limpyd import fields

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, embedded
from limpyd_jobs.models import BaseJobsModel

if __name__ == "__main__":
    # A job is stored with the path of its class, for workers to import: it must be `example.Mail`, not `__main__.Mail`.
    import example

    sys.exit(example.main())


class Refused(Exception):
    code = 550  # saved with the error of the job, as the name of the class and the message are


class MailQueue(Queue):
    namespace = "example"
    sent = fields.InstanceHashField()  # how many mails went out through this queue


class Mail(Job):
    namespace = "example"
    queue_model = MailQueue
    queue_name = "mail"
    to = fields.InstanceHashField(indexable=True)
    receipt = fields.InstanceHashField()

    def run(self, queue: MailQueue) -> str:
        """Send it. This shop only pretends to."""
        time.sleep(0.2)
        to, tries = self.hmget("to", "tries")
        if to == "nobody@example.org":
            raise Refused("no such mailbox")
        if to == "carol@example.org" and tries == "1":
            raise Refused("mailbox full")
        return f"accepted for {to}"

    def on_success(self, queue: MailQueue, result: str) -> None:
        self.receipt.hset(result)
        queue.sent.hincrby(1)


class MailError(Error):
    namespace = "example"
    to = fields.InstanceHashField(indexable=True)


class MailWorker(Worker):
    queues = "mail"
    queue_model = MailQueue
    error_model = MailError
    requeue_times = 1  # a mail that is refused gets a second chance,
    requeue_delay_delta = 1  # a second later

    def additional_error_fields(self, job: Mail, queue: MailQueue, exception: Exception, trace: str | None = None):
        return {"to": job.to.hget()}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        database = os.environ.get("LIMPYD_JOBS_DATABASE") or f"embedded://{directory}"
        BaseJobsModel.database.connect(database)
        try:
            send_mails(database)
        finally:
            embedded.stop(directory)  # does nothing when another database is used


def send_mails(database: str) -> None:
    started = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    mails = add_mails()
    print(f"{len(mails)} mails added", flush=True)
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-m", "limpyd_jobs.scripts.worker"]  # the same as limpyd-jobs-worker
    options = [f"--pythonpath={here}", "--worker-class=example.MailWorker"]
    environment = {**os.environ, "LIMPYD_JOBS_DATABASE": database}  # or the option --database
    workers = [subprocess.Popen(command + options, env=environment) for _ in range(2)]
    try:
        while any(mail.queued.hget() for mail in mails) and any(worker.poll() is None for worker in workers):
            time.sleep(0.1)  # `queued`: it waits, is delayed, or runs
    finally:
        for worker in workers:
            worker.terminate()  # SIGTERM: end after the current job
            worker.wait()
    print_summary(mails, started)
    if any(mail.queued.hget() for mail in mails):
        sys.exit("The workers ended before all mails were sent")


def add_mails() -> list[Mail]:
    mails = [
        Mail.add_job("news:1", to="alice@example.org"),
        Mail.add_job("news:2", to="bob@example.org"),
        Mail.add_job("news:3", to="carol@example.org"),  # refused once
        Mail.add_job("news:4", to="nobody@example.org"),  # refused for good
        Mail.add_job("news:5", to="dave@example.org"),
        Mail.add_job("reminder", to="erin@example.org", delayed_for=2),
        Mail.add_job("password", to="frank@example.org", priority=5),  # added last, sent first
    ]
    mails[4].status.hset(STATUSES.CANCELED)  # it stays in its queue, and is skipped there
    return mails


def print_summary(mails: list[Mail], started: str) -> None:
    print(f"\n{'mail':<10}{'status':<10}{'priority':<10}{'tries':<7}{'took':<7}receipt")
    for mail in sorted(mails, key=lambda mail: mail.start.hget() or ""):
        values = mail.hmget("identifier", "status", "priority", "tries", "receipt")
        identifier, status, priority, tries, receipt = (value or "-" for value in values)
        took = f"{mail.duration.total_seconds():.1f} s" if mail.duration else "-"
        print(f"{identifier:<10}{STATUSES.by_value(status):<10}{priority:<10}{tries:<7}{took:<7}{receipt}")
    print(f"\nmails sent: {sum(int(queue.sent.hget() or 0) for queue in MailQueue.get_all('mail'))}")
    errors = MailError.collection(type="Refused", date_time__gte=started)
    print(f"refused since {started}: {len(errors)}")
    for error in errors.sort(by="date_time", alpha=True).instances():
        print("  {} {}: {} {}".format(*error.hmget("date_time", "to", "code", "message")))
