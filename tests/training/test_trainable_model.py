"""Installed models train, and are read back."""

from __future__ import annotations

import torch
from tiny_task import tune_config

from taskedge.forms.sparse import sparse_layers
from taskedge.training.config import load_config
from taskedge.training.run import prepare_run
from taskedge.training.trainable_model import InstalledModel, install_support
from taskedge.training.tune_config import TuneConfig


def test_what_is_installed_is_read_back(task, tmp_path):
    run = prepare_run(tune_config(task, tmp_path / "o"), str)
    run.load()
    support = run.select()
    installed = install_support(run.base.model, support, run.config, run.full_names, str)
    assert isinstance(installed, InstalledModel)
    trained = {name for name, parameter in installed.model.named_parameters() if parameter.requires_grad}
    assert set(run.full_names) <= trained
    assert len(trained) == len(run.full_names) + len(support.linears)
    delta = installed.extract()
    assert delta.num_entries == support.num_entries
    assert all(torch.equal(delta.full_parameters[name], run.base.model.get_parameter(name)) for name in run.full_names)
    assert installed.fuse() is run.base.model


def test_a_model_with_drawn_columns_starts_with_the_columns_of_one_draw(task, tmp_path):
    config = tune_config(task, tmp_path / "o")
    given = config.model_dump(include={"model", "train", "text", "label", "out", "batch_size", "threads"})
    run = prepare_run(load_config(TuneConfig, given | {"columns": 2, "column_draws": 3}), str)
    run.load()
    support = run.select()
    model = install_support(run.base.model, support, run.config, run.full_names, str).model
    inputs = {id(layer.entries.shared_input): layer.entries.shared_input for layer in sparse_layers(model).values()}
    assert sum(len(each.columns) for each in inputs.values()) == support.stored_columns
