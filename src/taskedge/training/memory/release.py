"""Between passes, what they freed in small pieces goes back to the system: else it adds to the peak of the next."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from taskedge.profiling.process_memory import give_back


class Trim(TrainerCallback):  # type: ignore[misc]
    """In the Trainer: before the first pass and after each; takes some milliseconds."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        give_back()

    def on_substep_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        give_back(collect=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        give_back(collect=False)
