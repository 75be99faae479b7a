"""Scores from several sources: programmatic rewards, functions of people's own, services, and their weighted sum."""
