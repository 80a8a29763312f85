"""How many floating-point operations the model needs: what a dry run tells, and utilisation is counted by.

Symbols of the formulas: N weights, L layers, q the width of a layer's queries, T tokens of a sample.
"""

from torch import nn
from transformers import PreTrainedModel

from sparkles.models.sparkles_chat import SparklesChat


def training_flops(
    language: PreTrainedModel, *, tokens: float, square_tokens: float, labelled: float
) -> float:
    """What training through a frozen language model takes; multiplication and addition count as two.

    4 N a token: 2 N forward, and 2 N backward to the inputs alone, where weights that learn would take another 2 N.
    Looking up a word costs nothing, and the output layer works only where there is a loss. Attention: 6 L q T² a
    sample, its scores and its sums of values once forward and twice backward, each T² q as nothing looks ahead.

    Args:
        tokens: of all samples, image slots among them, padding not.
        square_tokens: sum of T² over the samples.
        labelled: tokens with a loss.
    """
    head = _numel(language.get_output_embeddings())
    body = _numel(language) - head
    if not language.config.tie_word_embeddings:  # else the words are the output layer
        body -= _numel(language.get_input_embeddings())
    return 4 * (body * tokens + head * labelled) + 6 * _attention(language) * square_tokens


def flops_per_image(model: SparklesChat) -> int:
    """2 N for each image token (vision) and query (the others), forward only; 6 N of what is trained."""
    backbone = model.vision.backbone
    tokens = {
        "vision": backbone.patch_embed.num_patches + backbone.num_prefix_tokens,
        "qformer": model.qformer.num_query_tokens,
        "projector": model.qformer.num_query_tokens,
    }
    return sum(
        (6 if weight.requires_grad else 2) * weight.numel() * number
        for name, number in tokens.items()
        for weight in model.get_submodule(name).parameters()
    )


def _attention(language: PreTrainedModel) -> int:
    """L q"""
    config = language.config
    heads = config.num_attention_heads
    return (
        config.num_hidden_layers * heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    )


def _numel(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
