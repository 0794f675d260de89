import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

pytest.importorskip("peft")
pytest.importorskip("scipy")

import peft

from benchmarks.accuracy.forgetting import cosines, kept_ranks


def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.zeros(len(rows))}


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return BertForSequenceClassification(config).train()


ROWS = [{"input_ids": list(range(1, 3 + n))} for n in range(6)]


def test_cosines_are_those_of_rows_alone_without_padding(model) -> None:
    found = cosines(model, ROWS, collate, size=4)
    assert model.training
    encoder = model.bert.eval()
    with torch.no_grad():
        means = [
            encoder(**{"input_ids": torch.tensor([row["input_ids"]])}).last_hidden_state[0].mean(0) for row in ROWS
        ]
    expected = [
        torch.cosine_similarity(means[i], means[j], dim=0) for i in range(len(ROWS)) for j in range(i + 1, len(ROWS))
    ]
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)


def test_an_adapter_of_peft_is_measured_with_its_change(model) -> None:
    before = cosines(model, ROWS, collate)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["value"]))
    assert torch.equal(cosines(adapted, ROWS, collate), before)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=30)
    after = cosines(adapted, ROWS, collate)
    assert not torch.allclose(after, before, atol=1e-3)
    assert kept_ranks(before, before) == pytest.approx(1)
    assert kept_ranks(before, -before) == pytest.approx(-1)
    assert kept_ranks(before, after) < 1
