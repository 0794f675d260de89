"""A vision transformer learns to read digits with one trained weight per neuron.

    python examples/images.py google/vit-base-patch16-224-in21k     # a folder or hub id of any image classifier

The 1,797 images of 8 x 8 come with scikit-learn, so nothing but the model is fetched.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate
from transformers import AutoModelForImageClassification

import taskedge as te

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="a local folder or a hub id")
parser.add_argument("--rows", type=int, default=1000, help="images to train on; the rest is held out")
parser.add_argument("--lr", type=float, default=1e-2)
parser.add_argument("--out", default="digits.safetensors")
given = parser.parse_args()

digits = load_digits()
model = AutoModelForImageClassification.from_pretrained(given.model, num_labels=10, ignore_mismatched_sizes=True)
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # [1797, 1, 8, 8], in -1..1
answers = torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, test = order[: given.rows], order[given.rows :]


def batches(rows, size=32):
    for part in rows.split(size):
        pixels = interpolate(images[part], size=model.config.image_size).expand(-1, 3, -1, -1)
        yield {"pixel_values": pixels.contiguous(), "labels": answers[part]}


support = te.select(model, list(batches(train[:128])), per_neuron=1)
te.install(model, support, step="activation")
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=given.lr)
model.train()
for step, batch in enumerate(batches(train)):
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")
te.save(te.extract(model), given.out)

model.eval()
with torch.no_grad():
    hits = torch.cat([model(**batch).logits.argmax(-1) == batch["labels"] for batch in batches(test)])
print(f"accuracy with {support.num_entries:,} entries of {support.model_parameters:,}: {hits.float().mean():.3f}")
