"""Run a task that `taskedge export --to onnx` wrote: onnxruntime, tokenizers and numpy, without torch or taskedge.

python examples/onnx_without_torch.py onnx/ "The film was good." "Never again."
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def load(folder):
    task = json.loads(Path(folder, "task.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if task["max_length"]:
        tokenizer.enable_truncation(task["max_length"])
    session = onnxruntime.InferenceSession(str(Path(folder, "model.onnx")), providers=["CPUExecutionProvider"])
    return task, tokenizer, session


def classify(task, tokenizer, session, texts):
    rows = tokenizer.encode_batch(texts)
    longest = max(len(row.ids) for row in rows)
    given = {name: np.zeros((len(rows), longest), np.int64) for name in task["inputs"]}
    given["input_ids"][:] = task["pad_token_id"]
    for place, row in enumerate(rows):
        parts = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
        for name in task["inputs"]:
            given[name][place, : len(row.ids)] = parts[name]
    logits = session.run(["logits"], given)[0].astype(np.float64)
    if task["task"] == "multi-label-classification":  # labels do not exclude each other
        chances, names = 1 / (1 + np.exp(-logits)), np.array(task["labels"])
        return [(",".join(names[row >= task["threshold"]]), float(row.max())) for row in chances]
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    return [(task["labels"][row.argmax()], float(row.max())) for row in chances]


if __name__ == "__main__":
    for text, (label, chance) in zip(sys.argv[2:], classify(*load(sys.argv[1]), sys.argv[2:]), strict=True):
        print(f"{label}\t{chance:.4f}\t{text}")
