"""AI feedback: what a judge is asked, how its answers become judgements, and how far people agree with it."""
