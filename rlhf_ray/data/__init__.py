"""Text in, token sequences out: tasks, chat templates, samplers, batching."""
