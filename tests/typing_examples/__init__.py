"""Programs for type checkers, never run. A line of one that is to be refused ends with `# error`."""
