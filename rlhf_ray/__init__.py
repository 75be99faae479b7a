"""Reinforcement learning from human feedback on Ray, vLLM and DeepSpeed: everything that is true without a cluster."""
