"""The config of a base, set to what a task needs.

A base's ``config.json`` may come from another task: its loss, its number of classes, or outputs of another form. These
fields are set on the loaded config before a model is made of it, so that they never decide how a task trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

NEUTRAL_FIELDS: dict[str, Any] = {
    "return_dict": True,  # outputs have names
    "output_hidden_states": False,  # they would only take memory
    "output_attentions": False,  # the same, and they rule out fused attention
    "output_router_logits": False,  # they add a term to the loss of a mixture of experts
    "chunk_size_feed_forward": 0,  # the same values; other sizes fail on batches that they do not divide
}
"""Fields of transformers' configs that change the form of outputs or the loss, but not the logits, with the value that
every task needs."""


def set_task_config(config: Any, task: str, labels: Sequence[str]) -> None:
    """Set the fields of a loaded config that decide the head, the loss and the form of the outputs, in place.

    Other fields describe the base as it was pretrained and stay.

    Args:
        config: a config of transformers; the configs inside it are set as well.
        task: a key of ``taskedge.backbone.loading.TASK_AUTO_CLASSES``.
        labels: the classes of a classifier.
    """
    for part in _with_sub_configs(config):
        for name, value in NEUTRAL_FIELDS.items():
            if getattr(part, name, value) != value:
                setattr(part, name, value)
    if task == "text-regression":
        config.num_labels = 1
        config.problem_type = "regression"
    elif task not in ("text-generation", "text-to-text", "dialogue-state"):
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        kind = "multi_label" if task == "multi-label-classification" else "single_label"
        # transformers refuses the problem type with one class, which only an imported adapter has
        config.problem_type = f"{kind}_classification" if len(labels) > 1 else None


def class_names(config: Any) -> tuple[str, ...]:
    """Return the classes that a config names, in the order of the outputs; empty if it has none."""
    names = getattr(config, "id2label", None) or {}
    return tuple(str(names[index]) for index in sorted(names))


def task_of_classifier(model: Any) -> tuple[str, tuple[str, ...]]:
    """Return the task and the classes of a classifier of transformers; both empty for any other model.

    A model with one output is no classifier.
    """
    kinds = {"ForSequenceClassification": "text-classification", "ForImageClassification": "image-classification"}
    config = getattr(model, "config", None)
    task = next((task for suffix, task in kinds.items() if type(model).__name__.endswith(suffix)), "")
    problem = getattr(config, "problem_type", None)
    if task == "text-classification" and problem == "multi_label_classification":
        task, problem = "multi-label-classification", None
    if not task or problem not in (None, "single_label_classification"):
        return "", ()
    labels = class_names(config)
    return (task, labels) if len(labels) > 1 else ("", ())


def _with_sub_configs(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", None) or ():
        part = getattr(config, name, None)
        if part is not None:
            yield from _with_sub_configs(part)
