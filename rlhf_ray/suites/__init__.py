"""Suites of evaluation: what is asked of any checkpoint, who is asked, and how the answers compare."""
