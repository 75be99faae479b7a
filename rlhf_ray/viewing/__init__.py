"""The page on a run's directory: curves, rollouts, answers, preferences, timeline, alarms, lineage, configuration."""
