"""`python -m limpyd_jobs`: the command `limpyd-jobs`."""

from .cli import main

main()
