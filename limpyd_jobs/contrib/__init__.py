"""What connects jobs with other packages, each of which only its own module needs."""
