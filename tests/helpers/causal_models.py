"""Tiny language models of several kinds, and batches with prompts, padding and labels for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers

_BODY = {
    "vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**_BODY, "num_key_value_heads": 1, "head_dim": 8}
CAUSAL_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_GROUPED, "tie_word_embeddings": False},
    "gpt2": {
        "vocab_size": 61,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 32,
        "initializer_range": 0.3,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "gemma2": {**_GROUPED, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {**_GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "qwen2": {**_BODY, "num_key_value_heads": 1},
    "granite": {**_BODY, "num_key_value_heads": 1, "logits_scaling": 7.0},
    "cohere": {**_BODY, "num_key_value_heads": 1, "logit_scale": 0.3},
    "phi": {**_BODY, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
}
"""Configs by model type. The head of ``llama`` is not tied to the embeddings, that of ``phi`` has a bias."""


def causal_model(kind: str, seed: int = 0) -> Any:
    """Return a model of a kind in ``CAUSAL_CONFIGS`` with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **CAUSAL_CONFIGS[kind])
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {
        "vocab_size": 61, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    },
    "bart": {
        "vocab_size": 61, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
        "init_std": 0.3, "decoder_start_token_id": 2, "pad_token_id": 1, "dropout": 0.0,
    },
}  # fmt: skip
"""Configs of encoder-decoders by model type."""


def encoder_decoder(kind: str, seed: int = 0) -> Any:
    """Return a model of a kind in ``ENCODER_DECODERS`` with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **ENCODER_DECODERS[kind])
    return transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()


def labeled_batch(config: Any, rows: int, tokens: int, seed: int) -> dict[str, torch.Tensor]:
    """Return rows of different lengths whose first tokens are prompts without labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, config.vocab_size, (rows, tokens), generator=generator)
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row in range(rows):
        prompt = int(torch.randint(1, tokens - 1, (), generator=generator))
        length = int(torch.randint(prompt + 1, tokens + 1, (), generator=generator))
        labels[row, :prompt] = labels[row, length:] = -100
        mask[row, length:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
