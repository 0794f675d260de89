"""Hugging Face's Trainer trains 0.1 % of a text classifier's own weights; PEFT loads the result.

python examples/trainer.py                                      # needs: pip install accelerate peft
python examples/trainer.py bert-base-uncased reviews.csv        # a folder or hub id; a CSV with text and label
"""

import argparse
from pathlib import Path

from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

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


def encoded(part):
    texts, answers = zip(*parts[part], strict=True)
    known = tokenizer(list(texts), truncation=True, max_length=64)
    return Dataset.from_dict({**known, "labels": [labels.index(answer) for answer in answers]})


train, test, collate = encoded("train"), encoded("test"), DataCollatorWithPadding(tokenizer)
model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(labels))
support = te.select(model, [collate([train[row] for row in range(64)])], budget="0.1%")
te.install(model, support, step="activation")
trainer = Trainer(
    model=model,
    args=TrainingArguments("task.run", learning_rate=3e-2, num_train_epochs=1, save_strategy="no", report_to="none"),
    train_dataset=train,
    eval_dataset=test,
    data_collator=collate,
    compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean().item()},
)
trainer.train()
print(f"accuracy with {support.num_entries:,} entries: {trainer.evaluate()['eval_accuracy']:.3f}")
about = {"task": "text-classification", "labels": tuple(labels)}  # so that `taskedge` knows what the delta is for
te.save(te.extract(model).with_provenance(**about), given.out)
print(f"wrote {given.out}; for peft: taskedge export {given.out} --to peft --out adapter/ --model {name}")
