"""What a run does when parts of it fail, come and go: state machines with an injected clock, without a cluster."""
