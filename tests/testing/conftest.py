"""After each test of what tests stand on, the books are right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from limpyd_jobs import admin


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    yield
    assert [str(problem) for problem in admin.check()] == []
