"""Looking after a database of jobs: what the command `limpyd-jobs` does, as functions."""

from .books import Problem, check
from .records import ErrorFilter, ErrorRecord, JobFilter, JobRecord, Page

__all__ = ["ErrorFilter", "ErrorRecord", "JobFilter", "JobRecord", "Page", "Problem", "check"]
