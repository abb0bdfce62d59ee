"""Per-example gradients of embeddings."""

from __future__ import annotations

from torch import Tensor, nn

from privacy.dpsgd.layers.registry import Found, sampler_for


@sampler_for(nn.Embedding)
def embedding_gradients(layer: nn.Embedding, inputs: Tensor, slopes: Tensor) -> Found:
    """Each token's slope, added up by its index; those of the padding index are left out.

    Args:
        layer: the embedding.
        inputs: (n, ...), whole numbers.
        slopes: (n, ..., dim).
    """
    tokens, slopes = inputs.reshape(len(inputs), -1), slopes.reshape(len(inputs), -1, slopes.shape[-1])
    if layer.padding_idx is not None:
        slopes = slopes * (tokens != layer.padding_idx)[..., None]
    rows = slopes.new_zeros(len(inputs), *layer.weight.shape)
    yield layer.weight, rows.scatter_add_(1, tokens[..., None].expand_as(slopes), slopes)
