"""Changes to the files of a base: its config, its tokenizer, its weights and its head, drawn from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch as st
import torch

Mutation = Callable[[Path, random.Random], str]
"""Changes a folder in place and returns what it did; an empty text if the folder has nothing of the kind."""

TEMPLATES = (
    "{% for m in messages %}<s>{{ m['content'] }}\n{% endfor %}",
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s>\n{% endfor %}{% if add_generation_prompt %}<s>"
    " assistant {% endif %}",
    "{% for m in messages %}{{ raise_exception('no') }}{% endfor %}",
    "{% for m in messages %}{{ m['content'] ",
)
_TURNS = "{% for m in messages %}{{ START + m['role'] + '\\n' + m['content']TRIM + END + '\\n' }}{% endfor %}"
_REQUEST = "{% if add_generation_prompt %}{{ START + 'assistant\\n' }}{% endif %}"


def config_field(folder: Path, rng: random.Random) -> str:
    """Set a field of the config to a value that published bases have, or that does not fit the others."""
    config = _read(folder / "config.json")
    vocabulary = config.get("vocab_size", 20)
    num_labels = rng.choice((1, 2, 3, 5))
    choices: list[dict[str, Any]] = [
        {"problem_type": rng.choice(("regression", "multi_label_classification", "single_label_classification"))},
        {"return_dict": False},
        {"torchscript": True},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"use_cache": rng.choice((True, False))},
        {"pad_token_id": rng.choice((None, 0, 5, vocabulary - 1, vocabulary + 7, -1))},
        {"eos_token_id": rng.choice((None, 0, 3, 6, vocabulary + 3, [3, 5]))},
        {"bos_token_id": rng.choice((None, 0, 2, vocabulary + 3))},
        {"decoder_start_token_id": rng.choice((None, 0, 3, vocabulary + 3))},
        {"vocab_size": rng.choice((vocabulary + 5, vocabulary - 5, 2))},
        {"tie_word_embeddings": not config.get("tie_word_embeddings", True)},
        {"dtype": rng.choice(("float16", "bfloat16", "float32", "float64"))},
        {"num_labels": num_labels, "id2label": {str(i): f"c{i}" for i in range(num_labels)}},
        {"chunk_size_feed_forward": rng.choice((1, 3))},
        {"is_decoder": not config.get("is_decoder", False)},
        {"architectures": rng.choice((None, [], ["NoSuchModel"]))},
        {"model_type": rng.choice(("bert", "gpt2", "nosuchtype", None))},
        {"classifier_dropout": rng.choice((0.5, None))},
        {"hidden_act": rng.choice(("relu", "nosuchact"))},
        {"attn_implementation": "eager"},
        {"initializer_range": 0.0},
    ]
    positions = [name for name in ("max_position_embeddings", "n_positions") if name in config]
    choices += [{name: rng.choice((8, 3, 1, config[name] * 2))} for name in positions]
    layers = [name for name in ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers") if name in config]
    choices += [{name: rng.choice((config[name] + 1, config[name] - 1))} for name in layers]
    change = rng.choice(choices)
    _write(folder / "config.json", config | change)
    return f"config {change}"


def tokenizer(folder: Path, rng: random.Random) -> str:
    """Change the tokenizer's side of padding or cutting, its tokens, its template, or one of its files."""
    path = folder / "tokenizer_config.json"
    config = _read(path)
    kind = rng.choice(
        ("side", "truncation", "no pad", "no eos", "length", "template", "added", "special added", "swap", "files")
    )
    if kind == "side":
        config["padding_side"] = rng.choice(("left", "right"))
    elif kind == "truncation":
        config["truncation_side"] = "left"
    elif kind == "no pad":
        config.pop("pad_token", None)
    elif kind == "no eos":
        config.pop("eos_token", None)
    elif kind == "length":
        config["model_max_length"] = rng.choice((1, 4, 10**30))
    elif kind == "template":
        config["chat_template"] = rng.choice(TEMPLATES)
        for other in folder.glob("chat_template*"):
            other.unlink()
    elif kind == "swap":
        config["eos_token"], config["pad_token"] = config.get("pad_token"), config.get("eos_token")
    elif kind == "files":
        victim = rng.choice([name for name in ("tokenizer.json", "tokenizer_config.json") if (folder / name).exists()])
        if rng.random() < 0.5:
            (folder / victim).unlink()
            return f"tokenizer without {victim}"
        _truncate(folder / victim, rng)
        return f"tokenizer with a truncated {victim}"
    else:
        _add_token(folder, special=kind == "special added")
    if kind not in ("added", "special added"):
        _write(path, config)
    return f"tokenizer {kind}: {config.get('padding_side', '')}"


def shards(folder: Path, rng: random.Random) -> str:
    """Split, damage, drop or exchange tensors or files of the weights."""
    path = folder / "model.safetensors"
    if not path.exists():
        return ""
    tensors = st.load_file(path)
    name = rng.choice(sorted(tensors))
    kind = rng.choice(
        ("missing tensor", "extra tensor", "truncated", "wrong shape", "wrong dtype", "half", "split", "missing shard",
         "absent in index", "empty", "not finite", "pickled", "garbage")
    )  # fmt: skip
    if kind == "missing tensor":
        del tensors[name]
    elif kind == "extra tensor":
        tensors[rng.choice((f"{name}.extra", "unused.weight"))] = torch.zeros(3)
    elif kind == "wrong shape":
        tensors[name] = torch.zeros(*tensors[name].shape[:-1], tensors[name].shape[-1] + 1)
    elif kind == "wrong dtype":
        tensors[name] = tensors[name].to(rng.choice((torch.int32, torch.float64, torch.float16)))
    elif kind == "half":
        dtype = rng.choice((torch.float16, torch.bfloat16))
        tensors = {key: value.to(dtype) for key, value in tensors.items()}
    elif kind == "not finite":
        tensors[name].view(-1)[0] = torch.nan
    elif kind == "truncated":
        _truncate(path, rng)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "garbage":
        path.write_bytes(rng.randbytes(2000))
    elif kind == "pickled":
        torch.save(tensors, folder / "pytorch_model.bin")
        path.unlink()
    else:
        _split(folder, tensors, rng, kind)
        path.unlink()
    if kind in ("missing tensor", "extra tensor", "wrong shape", "wrong dtype", "half", "not finite"):
        st.save_file(tensors, path, {"format": "pt"})
    return f"weights: {kind} {name}"


def head(folder: Path, rng: random.Random) -> str:
    """Rename, reorder or resize the classes of the base's own head."""
    config = _read(folder / "config.json")
    names = list(config.get("id2label", {"0": "neg", "1": "pos"}).values())
    kind = rng.choice(("reversed", "case", "other", "more", "label2id only", "placeholder", "twice"))
    if kind == "reversed":
        names = names[::-1]
    elif kind == "case":
        names = [f" {name.upper()}" for name in names]
    elif kind == "other":
        names = [f"other{i}" for i in range(len(names))]
    elif kind == "more":
        names = [*names, "third"]
    elif kind == "placeholder":
        names = [f"LABEL_{i}" for i in range(len(names))]
    elif kind == "twice":
        names = ["neg"] * len(names)
    config["label2id"] = {name: i for i, name in enumerate(names)}
    if kind == "label2id only":
        config.pop("id2label", None)
    else:
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
    _write(folder / "config.json", config)
    return f"head {kind}"


def chat(folder: Path, rng: random.Random) -> str:
    """Give the base a chat template that works, with a terminator of its own, and other ids at which it stops.

    Terminators are control tokens that the tokenizer has, one that is added (the base has spare embeddings), a word of
    the vocabulary, and none.
    """
    path, template = folder / "tokenizer_config.json", _TURNS + rng.choice(("", _REQUEST))
    config, vocabulary = _read(path), _read(folder / "tokenizer.json")["model"]["vocab"]
    end = rng.choice(("[SEP]", "[CLS]", "<end_of_turn>", "<|im_end|>", " night", ""))
    if end.startswith("<"):
        _add_token(folder, special=True, content=end)
    texts = {"START": rng.choice(("'[CLS]'", "'[UNK]'", "'turn '", "bos_token")), "END": repr(end)}
    for name, text in (texts | {"TRIM": rng.choice(("", " | trim"))}).items():
        template = template.replace(name, text)
    for other in folder.glob("chat_template*"):
        other.unlink()
    _write(path, config | {"chat_template": template})
    ids = [vocabulary["[SEP]"], vocabulary["night"], len(vocabulary)]
    stops = rng.choice((None, ids[0], ids[1], [ids[0], ids[2]], [ids[1], ids[0]], [ids[2]]))
    generation = folder / "generation_config.json"
    fields = _read(generation) if generation.exists() else {}
    _write(generation, fields | {"eos_token_id": stops, "repetition_penalty": rng.choice((1.0, 1.3))})
    return f"chat {template}, stops at {stops}"


CHAT = {"chat": chat}
"""For generation only."""
MUTATIONS: dict[str, Mutation] = {"config": config_field, "tokenizer": tokenizer, "weights": shards, "head": head}


def _add_token(folder: Path, *, special: bool, content: str = "plot twist") -> None:
    """Add a token behind the last of the tokenizer."""
    path = folder / "tokenizer.json"
    file = _read(path)
    vocabulary = file["model"]["vocab"]
    token = {
        "id": len(vocabulary), "content": content, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": special,
    }  # fmt: skip
    file["added_tokens"].append(token)
    _write(path, file)


def _split(folder: Path, tensors: dict[str, torch.Tensor], rng: random.Random, kind: str) -> None:
    """Write the tensors as two files with an index."""
    names = sorted(tensors)
    cut = rng.randrange(1, len(names))
    files = {f"model-0000{i}-of-00002.safetensors": part for i, part in ((1, names[:cut]), (2, names[cut:]))}
    for file, part in files.items():
        st.save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    index = {name: file for file, part in files.items() for name in part}
    if kind == "absent in index":
        index[rng.choice(names)] = "model-00003-of-00002.safetensors"
    if kind == "missing shard":
        (folder / rng.choice(sorted(files))).unlink()
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": index})


def _truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
