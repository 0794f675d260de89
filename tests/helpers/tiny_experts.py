"""Tiny mixtures of experts whose experts transformers stores as 3-D parameters, and a padded batch."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY, EXPERTS = 40, 4
_BODY: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts_per_tok": 2,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": EXPERTS}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": EXPERTS, "moe_intermediate_size": 12, "head_dim": 8}),
    "gpt_oss": (
        "GptOssConfig",
        {"num_local_experts": EXPERTS, "head_dim": 8, "layer_types": ["full_attention", "full_attention"]},
    ),
    "granitemoe": ("GraniteMoeConfig", {"num_local_experts": EXPERTS}),
    "llama4": (
        "Llama4TextConfig",
        {"num_local_experts": EXPERTS, "head_dim": 8, "intermediate_size_mlp": 24, "interleave_moe_layer_step": 1},
    ),
}
"""Weights [experts, in, out] with biases in GPT-OSS and without in Llama 4, [experts, out, in] in the others."""


def model_of(kind: str) -> Any:
    """Return a causal language model with large random weights, so that experts differ."""
    name, fields = CONFIGS[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**_BODY, **fields))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(seed: int = 1) -> dict[str, torch.Tensor]:
    """Return 3 rows of 7 tokens, the second with padding, and their labels."""
    ids = torch.randint(0, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def seen_tokens(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs of each expert's linear over tokens that are not padding, [tokens, in] in fp64.

    They are computed with plain products of slices, from the input and the routing of the experts.
    """
    found: dict[str, torch.Tensor] = {}
    kept = inputs["attention_mask"].flatten().bool()

    def see_copies(name: str, module: Any, copies: torch.Tensor) -> None:
        """Llama 4: each expert has a copy of all tokens, with zeros in place of those that are not routed to it."""
        for expert, hidden in enumerate(copies):
            x = hidden[hidden.any(1) & kept].double()
            gate, up = (x @ module.gate_up_proj[expert].double()).chunk(2, -1)
            found[f"{name}.{expert}.gate_up_proj"] = x
            found[f"{name}.{expert}.down_proj"] = up * module.act_fn(gate)

    def watch(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, *others = [value for value in (*args, *kwargs.values()) if value.dim() == 2]
            if not others:
                see_copies(name, module, hidden.view(EXPERTS, -1, hidden.shape[-1]))
                return
            routing = others[0]
            for expert in range(EXPERTS):
                x = hidden[(routing == expert).any(1) & kept].double()
                weight = module.gate_up_proj[expert].double()
                product = x @ weight if module.is_transposed else x @ weight.T
                if module.has_bias:
                    product = product + module.gate_up_proj_bias[expert].double()
                found[f"{name}.{expert}.gate_up_proj"] = x
                found[f"{name}.{expert}.down_proj"] = module._apply_gate(product)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return found
