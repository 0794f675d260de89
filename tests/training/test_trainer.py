"""Training gives the bits of transformers' Trainer, also after an interruption, and changes only what it trains."""

import json

import pytest
import tiny
import torch
import transformers

import taskedge as te
from taskedge.errors import InputError, TrainingDiverged
from taskedge.forms.kernels import _forced
from taskedge.forms.sparse import sparse_layers
from taskedge.training.callbacks import Callback
from taskedge.training.checkpoint import STATE, latest
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

SETTINGS = TrainerConfig(epochs=3, batch_size=4, accumulate=2, lr=1e-2, seed=5, checkpoint_every=2)


def rows(count=26, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(1, tiny.VOCABULARY, (3 + place % 6,), generator=draw).tolist(),
            "labels": place % tiny.LABELS,
        }
        for place in range(count)
    ]


def collate(examples):
    longest = max(len(row["input_ids"]) for row in examples)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in examples])
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([row["labels"] for row in examples]),
    }


def model():
    """Return a model with dropout, so that the random state matters."""
    made = tiny.bert(dropout=0.2)
    return te.install(made, te.select(made, rule="magnitude", per_neuron=1))


def run(folder, made=None, settings=SETTINGS, **options):
    made = made or model()
    torch.manual_seed(0)
    return made, train(made, rows(), collate, settings, folder, progress=False, **options)


class StopAt(Callback):
    """Interrupt the run at a step, as a kill would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, state):
        if state.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 1}, {"clip": 0.0}, {"weight_decay": 0.1}, {"bf16": True}, {"epochs": 1.4, "warmup": 0.3}],
    ids=str,
)
def test_it_ends_with_the_bits_of_the_trainer(tmp_path, changes):
    """24 rows: all batches are full, so that the mean of their means is the mean over all labels."""
    torch.set_num_threads(1)
    config = SETTINGS.model_copy(update={"checkpoint_every": 0, **changes})
    examples = rows(24)
    made, twin = model(), model()
    train(made, examples, collate, config, tmp_path, progress=False)
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        num_train_epochs=config.epochs,
        learning_rate=config.lr,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup,
        max_grad_norm=config.clip,
        bf16=config.bf16,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    trainer = transformers.Trainer(twin, arguments, train_dataset=examples, data_collator=collate)
    trainer.model_accepts_loss_kwargs = False  # else it would sum the means of the batches of a step
    trainer.train()
    assert tiny.same_bits(made.state_dict(), twin.state_dict())


def test_it_trains_the_entries_and_the_head_and_nothing_else(tmp_path):
    before = tiny.state(tiny.bert())
    made, result = run(tmp_path)
    assert result.steps == 12  # 7 batches, of which two make a step: 4 an epoch
    assert result.loss > 0
    assert result.log
    after = made.state_dict()
    layers = sparse_layers(made)
    for name, old in before.items():
        new = after[name]
        if name.removesuffix(".weight") in layers:
            entries = layers[name.removesuffix(".weight")].entries
            chosen = torch.zeros(old.shape, dtype=torch.bool)
            chosen[entries.rows, entries.columns] = True
            assert torch.equal(tiny.bits(old[~chosen]), tiny.bits(new[~chosen]))
            assert not torch.equal(old[chosen], new[chosen])
        elif not name.startswith("classifier."):
            assert torch.equal(tiny.bits(old), tiny.bits(new)), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny.state(run(tmp_path_factory.mktemp("whole"))[0])


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[1], [2], [5], [8], [11], [3, 6, 9]])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, uninterrupted, stops):
    for step in stops:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, resume=True, callbacks=[StopAt(step)])
        torch.rand(7)  # another process would have drawn other numbers
    made, result = run(tmp_path, resume=True)
    assert result.steps == 12
    assert tiny.same_bits(made.state_dict(), uninterrupted)


def test_a_run_that_was_not_interrupted_has_nothing_left_to_do(tmp_path, uninterrupted):
    run(tmp_path)
    made, result = run(tmp_path, resume=True)
    assert result.steps == 12
    assert tiny.same_bits(made.state_dict(), uninterrupted)


def test_without_resume_a_run_starts_anew(tmp_path, uninterrupted):
    run(tmp_path)
    assert tiny.same_bits(run(tmp_path)[0].state_dict(), uninterrupted)


def test_another_seed_gives_another_result(tmp_path, uninterrupted):
    made, _ = run(tmp_path, settings=SETTINGS.model_copy(update={"seed": 6}))
    assert not tiny.same_bits(made.state_dict(), uninterrupted)


class Poison(Callback):
    """Make the loss NaN in one step, and keep a copy of the parameters before it."""

    def __init__(self, step):
        self.step, self.before = step, None

    def on_step_begin(self, state):
        if state.step + 1 == self.step:
            self.before = tiny.state(state.model)
            state.model.classifier.register_forward_hook(lambda module, given, output: output * torch.nan)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    poison, made = Poison(6), model()
    with pytest.raises(TrainingDiverged, match=r"the loss is nan at step 6 \(learning rate 0\.00\d+\).*checkpoint-4"):
        run(tmp_path, made, callbacks=[poison])
    assert latest(tmp_path).name == "checkpoint-4"
    assert tiny.same_bits(made.state_dict(), poison.before)


def test_a_loss_that_is_no_number_before_any_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"at step 1 .*try a lower learning rate$"):
        run(tmp_path, callbacks=[Poison(1)])


def test_checkpoints_are_small_whole_and_readable(tmp_path):
    made, _ = run(tmp_path)
    newest = latest(tmp_path)
    assert newest.name == "checkpoint-12"
    assert len(list(tmp_path.glob("*checkpoint-*"))) == 2
    assert json.loads((newest / "trainer_state.json").read_text())["global_step"] == 12
    trained = sum(parameter.numel() for parameter in tiny.trained(made))
    names = 3 * len(tiny.trained(made)) * 200
    assert (newest / STATE).stat().st_size < 3 * 4 * trained + 30_000 + names


def test_no_checkpoints_where_none_are_asked_for(tmp_path):
    run(tmp_path, settings=SETTINGS.model_copy(update={"checkpoint_every": 0, "epochs": 1}))
    assert latest(tmp_path) is None


def test_resuming_from_a_damaged_checkpoint_says_so(tmp_path):
    run(tmp_path)
    state = latest(tmp_path) / STATE
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(InputError, match="the checkpoint is damaged"):
        run(tmp_path, resume=True)


def test_resuming_with_a_damaged_position_says_so(tmp_path):
    run(tmp_path)
    (latest(tmp_path) / "trainer_state.json").write_text("{")
    with pytest.raises(InputError, match="the checkpoint is damaged"):
        run(tmp_path, resume=True)


def test_autocast_trains(tmp_path):
    made, result = run(
        tmp_path, settings=SETTINGS.model_copy(update={"bf16": True, "epochs": 1, "checkpoint_every": 0})
    )
    assert result.steps == 4
    assert {parameter.dtype for parameter in tiny.trained(made)} == {torch.float32}


@pytest.mark.parametrize("rung", [{}, {"recompute": "blocks"}, {"micro_batch": 2}, {"rotate": 1}])
def test_sparing_memory_does_without_the_compiler(tmp_path, rung):
    seen = set()

    class Watch(Callback):
        def on_gradients(self, state):
            seen.add(_forced.get())

    run(tmp_path, settings=SETTINGS.model_copy(update={"epochs": 1, **rung}), callbacks=[Watch()])
    assert seen == ({"gather"} if rung else {None})
    assert _forced.get() is None


@pytest.mark.parametrize("rung", [{}, {"recompute": "blocks"}, {"micro_batch": 2}])
def test_sparing_memory_returns_the_tensors_of_a_micro_batch(tmp_path, monkeypatch, rung):
    """A row of 256 tokens of width 576 is 576 KiB: a threshold of 1 MiB left 4 times the live bytes resident."""
    thresholds = []
    monkeypatch.setattr("taskedge.training.trainer.return_freed_memory", thresholds.append)
    run(tmp_path, settings=SETTINGS.model_copy(update={"epochs": 1, **rung}))
    assert thresholds == ([2**15] if rung else [])
