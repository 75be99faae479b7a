"""Reward hacking, seen while it happens: detectors, alarms and the samples that show what was found."""
