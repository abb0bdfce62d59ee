"""Per-example gradients of each kind of layer, from its input and the gradient of its output: one kind a file."""

from privacy.dpsgd.layers import convolution, embedding, linear, normalisation  # noqa: F401 - each registers its kinds
