"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .books import Problem, check
from .numbers import Histogram, Numbers, Rates, by_hour, rates, series, totals
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page

__all__ = [
    "ErrorFilter",
    "ErrorRecord",
    "Histogram",
    "JobFilter",
    "JobRecord",
    "Numbers",
    "Page",
    "Problem",
    "Rates",
    "by_hour",
    "check",
    "rates",
    "series",
    "totals",
]
