"""Structured configuration: one file a stage; load, merge, validate."""
