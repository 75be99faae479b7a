"""The labelling page: who is asked what, what they answer, and how well, over the preference store."""
