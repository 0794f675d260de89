"""Texts become padded batches, predictions keep their order, and quality equals a count by hand."""

import numpy as np
import pytest
import tiny
import tiny_kinds
import tiny_task
import torch
from chat_templates import unigram_tokenizer
from tokenizers.processors import TemplateProcessing

from taskedge.errors import InputError
from taskedge.training.data.text_data import (
    Prediction,
    batch_indices,
    collator,
    encode,
    log_padding,
    outputs,
    predict,
    quality,
)


class Tokenizer:
    """Every letter is a token; pads with 0."""

    added_tokens_decoder, all_special_tokens, all_special_ids = {}, (), ()

    def __call__(self, texts, truncation, max_length=None, verbose=True):
        assert truncation == (max_length is not None)
        ids = [[1 + ord(letter) % 30 for letter in text][:max_length] for text in texts]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}

    def pad(self, rows, **options):
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {
            key: torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in rows])
            for key in ("input_ids", "attention_mask")
        }
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


TEXTS = ["a long text of words", "b", "middling", "xyz", "another one", "qq"]


def collate(rows):
    return Tokenizer().pad(rows)


def test_rows_are_cut_and_carry_their_label():
    rows = encode(Tokenizer(), ["abcdef", "g"], [2, 0], max_length=4)
    assert [len(row["input_ids"]) for row in rows] == [4, 1]
    assert [row["labels"] for row in rows] == [2, 0]
    assert "labels" not in encode(Tokenizer(), ["a"], None, 4)[0]
    with pytest.raises(ValueError, match="zip"):
        encode(Tokenizer(), ["a", "b"], [1], 4)


def test_cut_texts_are_counted():
    said = []
    encode(Tokenizer(), ["abcdef", "g", "abcd", "abcde"], None, 4, said.append)
    assert said == [
        "2 of 4 rows have more than 4 tokens and are cut at their end: 3 tokens are lost (longest row: 6 tokens)"
    ]
    encode(Tokenizer(), ["abcd", "a"], None, 4, said.append)
    assert len(said) == 1


def test_a_batch_is_padded_to_its_longest():
    tokenizer = Tokenizer()
    tokenizer.padding_side = "right"
    batch = collator(tokenizer)(encode(tokenizer, ["abc", "d"], [0, 1], 8))
    assert batch["input_ids"].shape == (2, 3)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_predictions_are_in_the_order_of_the_rows(bert, batch_size):
    rows = encode(Tokenizer(), TEXTS, [0] * 6, 20)
    done = []
    found = predict(bert, rows, collate, batch_size, done.append)
    assert sum(done) == len(TEXTS)
    assert found.probabilities.dtype == np.float32
    for row, mine in zip(rows, found.probabilities, strict=True):
        with torch.no_grad():
            direct = bert(input_ids=torch.tensor([row["input_ids"]])).logits.softmax(-1)[0]
        torch.testing.assert_close(torch.from_numpy(mine), direct, rtol=1e-4, atol=1e-6)
    assert found.classes.tolist() == found.probabilities.argmax(1).tolist()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode_even_after_an_exception(training):
    model = tiny.bert(dropout=0.5).train(training)
    rows = encode(Tokenizer(), TEXTS, None, 20)
    one, other = (predict(model, rows, collate).probabilities for _ in range(2))
    assert (one == other).all()
    assert model.training is training
    with pytest.raises(
        InputError, match=r"row 1: the base cannot compute it \(IndexError.* token 1000000 has no embedding"
    ):
        predict(model, [{"input_ids": [10**6], "attention_mask": [1]}], collate)
    assert model.training is training


def test_quality_by_hand():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1]], dtype=np.float32)
    found = quality(Prediction(probabilities), [0, 1, 1, 1])
    assert found.rows == 4
    assert found.accuracy == 0.75
    assert found.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)  # class 2 neither occurs nor is predicted
    assert found.loss == pytest.approx(-np.log([0.8, 0.6, 0.4, 0.7]).mean(), rel=1e-6)


def test_a_certain_mistake_has_a_finite_loss():
    assert np.isfinite(quality(Prediction(np.array([[1.0, 0.0]], dtype=np.float32)), [1]).loss)


def test_batches_of_one_length():
    lengths = [3, 1, 3, 2, 3, 1]
    assert list(batch_indices(lengths, 4, mixed=True)) == [[1, 5, 3, 0], [2, 4]]
    assert list(batch_indices(lengths, 2, mixed=False)) == [[1, 5], [3], [0, 2], [4]]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "xlnet"])
def test_padding_is_on_the_side_that_the_model_does_not_read(kind, tmp_path):
    base = tiny_kinds.base_of(kind, "text-classification", tmp_path / "base")
    tokenizer = base.tokenizer
    rows = encode(tokenizer, ["a long film was", "a"], [0, 1], 20)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        mask = collator(tokenizer, base.model)(rows)["attention_mask"]
        assert mask[1].tolist() == ([0, 0, 0, 1, 1, 1] if kind == "xlnet" else [1, 1, 1, 0, 0, 0])
        assert tokenizer.padding_side == side


def test_a_model_that_reads_padding_sees_none(tmp_path):
    base, said, done = tiny_kinds.base_of("convbert", "text-classification", tmp_path / "base"), [], []
    rows = encode(base.tokenizer, ["a long film was", "a", "so", "the plot", "film"], None, 20)
    collate = collator(base.tokenizer, base.model)
    alone = outputs(base.model, rows, collate, 1)
    np.testing.assert_allclose(outputs(base.model, rows, collate, 4, done.append), alone, atol=1e-5)
    assert done == [3, 1, 1]
    log_padding(base.model, said.append)
    assert said
    assert "models of type 'convbert' read the padding of a batch" in said[0]
    log_padding(tiny_kinds.base_of("bert", "text-classification", tmp_path / "bert").model, said.append)
    assert len(said) == 1


@pytest.mark.parametrize("kind", ["bart", "bert", "gpt2", "llama", "t5"])
def test_without_a_padding_token(kind, tmp_path):
    """The end token pads; the classifiers of encoder-decoders count end tokens."""
    base = tiny_kinds.base_of(kind, "text-classification", tmp_path / "base", padding=False)
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id
    rows = encode(base.tokenizer, ["a long film was", "a", "the plot"], None, 20)
    collate = collator(base.tokenizer, base.model)
    np.testing.assert_allclose(outputs(base.model, rows, collate, 3), outputs(base.model, rows, collate, 1), atol=1e-5)


@pytest.mark.parametrize("padding", [True, False])
def test_a_text_without_tokens(padding, tmp_path):
    """A tokenizer may drop all that a text has; such a row is the same alone and in a batch, and it is said."""
    base, said = tiny_kinds.base_of("gpt2", "text-classification", tmp_path / "base", padding=padding), []
    base.tokenizer._tokenizer.post_processor = None
    rows = encode(base.tokenizer, ["a long film was", "\u2003", "the plot"], [0, 1, 0], 20, said.append)
    assert rows[1] == {"input_ids": [3], "attention_mask": [1], "labels": 1}
    assert said == ["1 of 3 rows have no token (first: row 2): they are read as '[SEP]'"]
    collate = collator(base.tokenizer, base.model)
    np.testing.assert_allclose(outputs(base.model, rows, collate, 3), outputs(base.model, rows, collate, 1), atol=1e-5)


def test_control_tokens_in_a_text_are_told():
    lines: list[str] = []
    encode(tiny_task.tokenizer(), ["good [SEP] bad", "bad"], None, 20, lines.append)
    assert lines == [
        "1 of 2 rows hold a control token of the base, such as '[SEP]' in row 1: it is read as the control token, not "
        "as text"
    ]


def test_an_end_token_that_text_gives_too_is_parted():
    tokenizer = unigram_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    lines: list[str] = []
    rows = encode(tokenizer, ["good </s> bad", "bad"], None, 20, lines.append, controls_as_text=True)
    assert [row["input_ids"].count(1) for row in rows] == [1, 1]
    assert tokenizer.decode(rows[0]["input_ids"]) == "good < /s> bad</s>"
    assert lines[1:] == ["in 1 of these rows a blank is put into it, so that it is text (first: row 1)"]
