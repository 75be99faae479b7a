"""One vendor library each, imported only here: generation (vLLM), training (DeepSpeed), scoring."""
