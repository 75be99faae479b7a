"""Floating-point operations of a forward and a training pass, exactly, for one sequence. docs/planning.md derives them.

A product of a vector with an n x m matrix is 2nm operations; norms, rotations and activations are left out (under 1%).
"""

from __future__ import annotations

from rlhf_ray.planning.shapes import ModelShape

BACKWARD = 2.0  # times the forward pass: the gradient of the inputs and that of the weights


def layers_flops(shape: ModelShape, tokens: int) -> float:
    """All layers over a sequence: matrix products, and attention of each token to itself and those before it."""
    matrices = 2.0 * shape.matrices_per_layer * tokens
    pairs = tokens * (tokens + 1) / 2
    attention = 2 * 2.0 * shape.num_heads * shape.head_dim * pairs  # scores, then the weighted sum of values
    return shape.num_layers * (matrices + attention)


def head_flops(shape: ModelShape, tokens: int) -> float:
    """The vocabulary's head over ``tokens`` positions; here only sampled tokens pass through it."""
    return 2.0 * shape.hidden * shape.vocab * tokens


def forward_flops(shape: ModelShape, *, prompt: int, response: int, head: bool = True) -> float:
    """One forward pass over a prompt and its response; ``head`` False: a scalar head, which costs nothing."""
    return layers_flops(shape, prompt + response) + (head_flops(shape, response) if head else 0.0)


def training_flops(forward: float, *, checkpointing: bool, frozen: bool = False) -> float:
    """Forward and backward. ``checkpointing`` runs the forward again; ``frozen`` weights (LoRA) want no gradient."""
    backward = 1.0 if frozen else BACKWARD
    return forward * (1 + backward + (1 if checkpointing else 0))


def decode_flops(shape: ModelShape, context: float) -> float:
    """One sampled token after ``context`` others."""
    attention = 2 * 2.0 * shape.num_heads * shape.head_dim * (context + 1)
    return shape.num_layers * (2.0 * shape.matrices_per_layer + attention) + head_flops(shape, 1)


def six_n_d(parameters: int, tokens: int) -> float:
    """The rule of thumb of Kaplan et al. 2020 (section 2.1): 6ND for training, attention left out."""
    return 6.0 * parameters * tokens
