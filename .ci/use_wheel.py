"""Use an installed taskedge as a user does: by its command, in an empty folder, with a tiny model made here."""

import csv
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import tokenizers
import torch
import transformers

import taskedge

prefix = Path(sys.argv[1])
assert Path(taskedge.__file__).is_relative_to(prefix), f"{taskedge.__file__} is not the wheel's"
assert (Path(taskedge.__file__).parent / "py.typed").is_file(), "the wheel ships no type hints"
assert version("taskedge") == taskedge.__version__


def run(*arguments: str) -> str:
    """Run the installed command and return what it printed."""
    ended = subprocess.run([prefix / "bin" / "taskedge", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"taskedge {' '.join(arguments)}: {ended.stderr}"
    return ended.stdout


WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "the"]
made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
config = transformers.BertConfig(
    vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16,
)  # fmt: skip
torch.manual_seed(0)
transformers.BertModel(config).save_pretrained("base")
transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
).save_pretrained("base")
with Path("train.csv").open("w", newline="") as file:
    csv.writer(file).writerows([("text", "label"), *((f"the film {word}", word) for word in ["good", "bad"] * 16)])

assert taskedge.__version__ in run("--version")
data = ("--text", "text")
run("tune", "--model", "base", "--train", "train.csv", *data, "--label", "label", "--columns", "2", "--epochs", "1")
assert "as LoRA   rank 2" in run("info", "task.safetensors")
assert run("predict", "task.safetensors", "--data", "train.csv", *data).count("\n") == 33
run("merge", "task.safetensors", "--out", "merged")
print(run("export", "task.safetensors", "--to", "lora", "--out", "adapter"), end="")
print(f"taskedge {taskedge.__version__} works as installed, Python {sys.version.split()[0]}")
