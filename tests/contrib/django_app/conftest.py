"""The Django project of the tests: the example of docs/django.md, set up once in a process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import instruments

from ...base import RedisServer
from ..examples import write_example

BESIDE_THE_EXAMPLE = {
    "manage.py": """
import os, sys
from django.core.management import execute_from_command_line
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bookshop.settings")
execute_from_command_line(sys.argv)
""",
    "bookshop/__init__.py": "",
    "bookshop/urls.py": """
from django.contrib import admin
from django.urls import path
from orders.views import buy
urlpatterns = [path("admin/", admin.site.urls), path("buy", buy)]
""",
    "orders/__init__.py": "",
    "orders/tasks.py": """
from django.db import connection
from limpyd_jobs.tasks import task
from orders.models import Order

@task(queue="mails", save_result=True)
def count_orders() -> int:
    return Order.objects.count()

@task(queue="mails", save_result=True)
async def acount_orders() -> int:
    return await Order.objects.acount()

@task(queue="mails", save_result=True)
def has_open_connection() -> bool:
    was_open = connection.connection is not None
    Order.objects.count()
    return was_open

@task(queue="mails", save_result=True, isolate=True)
def has_inherited_connection() -> bool:
    return connection.connection is not None

@task(queue="mails", save_result=True)
def first_of(names: list[str]) -> str:
    return names[0]
""",
}
BASIC_SETTINGS = """
SECRET_KEY = "of the tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "bookshop.urls"
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {file!r}, "OPTIONS": {{"timeout": 30}}}}}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
TIME_ZONE = "UTC"
LOGGING_CONFIG = None
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {{"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]}},
}}]
"""


TABLES = ("django_admin_log", "django_session", "auth_user_user_permissions", "auth_user", "orders_order")


@pytest.fixture(scope="session")
def django_project(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a project, which this process has set up, with tables."""
    directory = tmp_path_factory.mktemp("bookshop")
    write_example("django", directory, redis_server.url)
    for name, text in BESIDE_THE_EXAMPLE.items():
        (directory / name).write_text(text)
    settings_file = directory / "bookshop" / "settings.py"
    basic = BASIC_SETTINGS.format(file=str(directory / "db.sqlite3"))
    settings_file.write_text(basic + settings_file.read_text())
    sys.path.insert(0, str(directory))

    import django
    from django.conf import settings
    from django.core.management import call_command

    # not by its name: then Django would set the time zone of this process
    settings.configure(**{name: value for name, value in runpy.run_path(str(settings_file)).items() if name.isupper()})
    former = list(instruments.instruments)
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    ours = [one for one in instruments.instruments if one not in former]
    instruments.instruments[:] = former
    django_project_instruments.extend(ours)
    yield directory
    sys.path.remove(str(directory))


django_project_instruments: list[Any] = []


@pytest.fixture
def bookshop(django_project: Path, database: Any) -> Iterator[Path]:
    """The project, with an empty database of jobs and without orders."""
    from django.db import connection

    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"DELETE FROM {table}")
    for one in django_project_instruments:
        instruments.add_instrument(one)
    yield django_project
    for one in django_project_instruments:
        instruments.remove_instrument(one)
    connection.close()
