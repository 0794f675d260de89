"""Tiny language models as GGUF files, as llama.cpp's converter lays them out; token ids only, without a tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

import taskedge as te

VOCABULARY = 48
_BODY = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.3,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "rms_norm_eps": 1e-5,
}  # fmt: skip
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16, "layer_types": ["sliding_attention"] * 2}
CONFIGS = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "gemma3_text": ("Gemma3TextConfig", _GEMMA),
}
ROW_TYPES = {"llama": "llama", "qwen2": "qwen2", "gemma3_text": "gemma3"}


def model(kind: str) -> torch.nn.Module:
    """Return a random model of a kind, the same on every call."""
    name, more = CONFIGS[kind]
    config = getattr(transformers, name)(**_BODY, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def ids(rows: int = 4, tokens: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def tuned(kind: str, **options: object) -> te.Delta:
    """Return a delta of a few steps on random tokens."""
    base = model(kind)
    batch = {"input_ids": ids(), "labels": ids()}
    te.install(base, te.select(base, [batch], **options), trainable=[])
    optimizer = torch.optim.AdamW([p for p in base.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(3):
        optimizer.zero_grad()
        base(**batch).loss.backward()
        optimizer.step()
    return te.extract(base)


def write_base(kind: str, path: Path, *, quantized: str = "F32") -> Path:
    """Write the random model of a kind as a GGUF file; its linears in a type."""
    import gguf

    base = model(kind)
    config, arch = base.config, ROW_TYPES[kind]
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(8)
    if arch == "gemma3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
    parameters = getattr(config, "rope_parameters", None) or {}
    theta = parameters.get("rope_theta") or parameters.get("full_attention", {}).get("rope_theta") or 10000.0
    writer.add_rope_freq_base(float(theta))
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in base.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = table.get_name(name, try_suffixes=(".weight", ".bias"))
        array = tensor.float()
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).transpose(1, 2).reshape(array.shape)
        if arch == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        kind_of = gguf.GGMLQuantizationType[quantized if tensor.dim() == 2 and "blk" in stored else "F32"]
        writer.add_tensor(stored, gguf.quants.quantize(array.contiguous().numpy(), kind_of), raw_dtype=kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
