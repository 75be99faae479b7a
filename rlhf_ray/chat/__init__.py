"""Talking to a model, or to two at once, on a terminal: in this process, without a cluster."""
