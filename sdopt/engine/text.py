"""CLIP's text encoder over the engine's fused operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdopt.engine import ops
from sdopt.engine.joining import joined_projections
from sdopt.errors import SdoptError

ACTIVATION = "quick_gelu"
"""The activation of Stable Diffusion 1.x's text encoder, x * sigmoid(1.702 * x)."""


def check_encoder(encoder: Any) -> None:
    """Raise SdoptError for a text encoder that `encode_text` does not compute."""
    kind, activation = type(encoder).__name__, getattr(encoder.config, "hidden_act", None)
    if kind != "CLIPTextModel" or activation != ACTIVATION:
        raise SdoptError(
            f"the engine encodes text with a CLIPTextModel of hidden_act={ACTIVATION!r}, this is a "
            f"{kind} of {activation!r}; use a level without fused kernels, such as 'one-graph'"
        )


OLD_END = 2
"""The `eos_token_id` of old configurations, whose end mark is the largest id."""


Joined = Mapping[nn.Module, tuple[Tensor, Tensor | None]]
"""Weight and bias of queries, keys and values as one product, by self-attention."""


def joined_attentions(encoder: Any) -> Joined:
    """What `encode_text` reads of an encoder's self-attentions, joined in place."""
    attentions = [layer.self_attn for layer in _model(encoder).encoder.layers]
    return {one: joined_projections((one.q_proj, one.k_proj, one.v_proj)) for one in attentions}


def encode_text(encoder: Any, joined: Joined, ids: Tensor) -> Tensor:
    """The last hidden state of a transformers CLIPTextModel for token ids (prompts, tokens)."""
    model = _model(encoder)
    embeddings = model.embeddings
    _check_length(ids, embeddings.position_embedding.weight)
    positions = embeddings.position_embedding.weight[: ids.shape[1]]
    x = embeddings.token_embedding.weight[ids] + positions
    for layer in model.encoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        normed = ops.layer_norm(x, layer.layer_norm1)
        q, k, v = ops.linear(normed, *joined[attention]).chunk(3, dim=-1)
        attended = ops.attention(q, k, v, attention.num_heads, causal=True)
        out = attention.out_proj
        x = ops.linear(attended, out.weight, out.bias, residual=x)
        normed = ops.layer_norm(x, layer.layer_norm2)
        hidden = ops.quick_gelu(ops.linear(normed, mlp.fc1.weight, mlp.fc1.bias))
        x = ops.linear(hidden, mlp.fc2.weight, mlp.fc2.bias, residual=x)
    return ops.layer_norm(x, model.final_layer_norm)


def _check_length(ids: Tensor, positions: Tensor) -> None:
    if ids.shape[1] > len(positions):
        raise SdoptError(
            f"the text encoder reads {len(positions)} tokens at most, these are {ids.shape[1]}; "
            "tokenize with truncation=True"
        )


def pooled_text(encoder: Any, hidden: Tensor, ids: Tensor) -> Tensor:
    """The last hidden state at each text's first end mark, (prompts, width), as transformers'."""
    end = _model(encoder).eos_token_id
    ends = ids.int().argmax(-1) if end == OLD_END else (ids == end).int().argmax(-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), ends]


def _model(encoder: Any) -> Any:
    return getattr(encoder, "text_model", encoder)
