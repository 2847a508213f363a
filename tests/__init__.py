"""The tests: `python run_tests.py` runs them. See CONTRIBUTING.md for what belongs where."""
