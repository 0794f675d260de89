"""Settings of the training loop: passes of a step, low memory, and fields that other settings share."""

import pytest

from taskedge.errors import InputError
from taskedge.training.config import Config
from taskedge.training.trainer_config import DEFAULTS, TrainerConfig, trainer_field


def passes(config):
    return config.rows_per_pass, config.passes_per_step


def test_passes_of_a_step():
    assert passes(TrainerConfig(batch_size=32, accumulate=2)) == (32, 2)
    assert passes(TrainerConfig(batch_size=32, accumulate=2, micro_batch=8)) == (8, 8)
    message = "a micro-batch of 5 rows does not divide a batch of 8: give one of 1, 2, 4, 8"
    with pytest.raises(InputError, match=message):
        TrainerConfig(batch_size=8, micro_batch=5)


@pytest.mark.parametrize(
    ("changes", "low_memory"),
    [
        ({}, False),
        ({"accumulate": 4, "bf16": True}, False),
        ({"recompute": "inputs"}, True),
        ({"micro_batch": 16}, True),
        ({"rotate": 1}, True),
        ({"optimizer": "mezo"}, True),
    ],
)
def test_low_memory(changes, low_memory):
    assert TrainerConfig(**changes).low_memory is low_memory


def test_every_field_is_described():
    assert all(field.description for field in TrainerConfig.model_fields.values())


def test_a_shared_field_has_the_same_default_constraints_and_description():
    class Other(Config):
        warmup: float = trainer_field("warmup")
        clip: float = trainer_field("clip", default=2.0)

    assert (Other().warmup, Other().clip) == (DEFAULTS.warmup, 2.0)
    assert Other.model_fields["warmup"].description == TrainerConfig.model_fields["warmup"].description
    for config_class in (Other, TrainerConfig):
        for warmup in (-0.1, 1.0):
            with pytest.raises(InputError, match="warmup="):
                config_class(warmup=warmup)
