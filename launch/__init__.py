"""Ways to start: the command line, Ray job submission, set-up scripts."""
