"""Names, definitions, sinks and the report."""
