"""The stages of a run, from a model to a report: each leaves an artefact that knows what it was made from."""
