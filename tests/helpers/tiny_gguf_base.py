"""A tiny Llama with a tokenizer of bytes, as a folder and as a GGUF file as llama.cpp's converter writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

SPECIAL = ("<unk>", "<s>", "</s>")
MERGES = [("t", "h"), ("e", "n"), ("Ġ", "th"), ("o", "o")]
WIDTH = 32


def vocabulary() -> list[str]:
    """Return the tokens in the order of their ids: special ones, bytes, merges."""
    from tokenizers import pre_tokenizers

    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]


def write_folder(folder: Path, **changes: Any) -> Path:
    """Save the model and its tokenizer as a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary())}, MERGES))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
    config = transformers.LlamaConfig(
        **{
            "vocab_size": len(vocabulary()), "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 2 * WIDTH, "max_position_embeddings": 96,
            "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5,
            **changes,
        }
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_gguf(
    folder: Path,
    path: Path,
    *,
    quantized: str = "F16",
    architecture: str = "llama",
    tokenizer: bool = True,
    rope_factors: list[float] | None = None,
    more: Callable[[Any], None] = lambda writer: None,
) -> Path:
    """Write the model of a folder as a GGUF file, with its matrices in a type.

    Args:
        folder: from :func:`write_folder`.
        path: the file.
        quantized: type of the linears' weights.
        architecture: as the file states it.
        tokenizer: whether the file holds the tokenizer.
        rope_factors: divisors of the rotary frequencies.
        more: gets the writer before it writes.
    """
    import gguf
    import numpy as np

    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    if tokenizer:
        kinds = gguf.TokenType
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(vocabulary())
        writer.add_token_types([kinds.CONTROL if token in SPECIAL else kinds.NORMAL for token in vocabulary()])
        writer.add_token_merges([" ".join(pair) for pair in MERGES])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(False)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(rope_factors, dtype=np.float32))
    more(writer)
    for name, tensor in model.state_dict().items():
        array = tensor.float()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).transpose(1, 2).reshape(array.shape)
        stored = table.get_name(name, try_suffixes=(".weight", ".bias"))
        kind = gguf.GGMLQuantizationType[quantized if tensor.dim() == 2 and stored.startswith("blk") else "F32"]
        writer.add_tensor(stored, gguf.quants.quantize(array.contiguous().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
