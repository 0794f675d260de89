"""Chat templates of the kinds that models are published with, and a tokenizer that has one."""

from __future__ import annotations

import tiny_task
import tokenizers
import transformers

_GEMMA_TURNS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for turn in messages %}{% set role = 'model' if turn['role'] == 'assistant' else turn['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + turn['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
GEMMA = _GEMMA_TURNS + "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
"""Ends turns with ``<end_of_turn>``, removes blanks, refuses a system turn."""
WITHOUT_REQUEST = _GEMMA_TURNS
"""The same without a generation prompt."""
_QWEN_TURNS = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nthe film was good<|im_end|>\n' }}{% endif %}"
    "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\n' + CONTENT + '<|im_end|>\n' }}{% endfor %}"
)
_QWEN_REQUEST = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
QWEN = _QWEN_TURNS.replace("CONTENT", "turn['content']") + _QWEN_REQUEST
"""Ends turns with ``<|im_end|>``, adds a system turn."""
THOUGHTS = (
    _QWEN_TURNS.replace(
        "CONTENT",
        "('<think>\n\n</think>\n\n' if turn['role'] == 'assistant' and '</think>' not in turn['content'] else '')"
        " + turn['content']",
    )
    + _QWEN_REQUEST
)
"""The same with an empty block of thoughts before a response that has none."""
OTHER_REQUEST = (
    "{% for turn in messages %}{% if turn['role'] == 'user' %}{{ '<|im_start|>' + turn['content'] }}"
    "{% else %}{{ '<|im_end|>' + turn['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|><think>\n' }}{% endif %}"
)
"""Requests thoughts, which it removes from past turns."""
INSTRUCTION = (
    "{{ bos_token }}{% for turn in messages %}"
    "{% if turn['role'] == 'user' %}{{ '[INST] ' + turn['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""No generation prompt; a blank before the response; the end token ends it."""
PARTS = (
    "{% for turn in messages %}{{ '<start_of_turn>' + turn['role'] + ' ' }}{% for part in turn['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<end_of_turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>assistant ' }}{% endif %}"
)
"""Wants the content of a turn as a list of parts."""
WITHOUT_END = (
    "{% for turn in messages %}{{ turn['role'] + ' ' + turn['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
"""Ends turns with a line break only."""
CONTROL = ("<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>")


def chat_tokenizer(template: str) -> transformers.PreTrainedTokenizerFast:
    """Return the word tokenizer with ``CONTROL`` tokens, start token ``[CLS]``, end token ``[SEP]`` and a template."""
    made = tiny_task.speaker()
    made.bos_token = "[CLS]"
    made.add_special_tokens({"additional_special_tokens": list(CONTROL)})
    made.add_tokens(["<think>", "</think>"])
    made.model_input_names = ["input_ids", "attention_mask"]
    made.chat_template = template
    return made


def byte_tokenizer(template: str = "") -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of bytes with the same control tokens: its tokens of a text spell the text."""
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)} | {"th": 256, "en": 257}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [("t", "h"), ("e", "n")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    result = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]", bos_token="[CLS]")
    result.add_special_tokens({"additional_special_tokens": list(CONTROL)})
    result.model_input_names = ["input_ids", "attention_mask"]
    result.chat_template = template or None
    return result


def unigram_tokenizer(**special: object) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer that makes its end token of letters too, as T5's does."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁good", -3.0), ("▁bad", -3.0)]
    pieces += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz</>!"]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2, byte_fallback=False))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **special
    )
