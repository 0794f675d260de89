"""Settings are frozen and checked; every fault is reported at once, with its flag or its key in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from taskedge.errors import InputError
from taskedge.training.config import Config, InvalidConfig, changes_text, load_config


class Example(Config):
    """Settings of nothing."""

    old_names: ClassVar[dict[str, str]] = {"hue": "color"}

    size: Annotated[int, Field(description="Size of it.", ge=1)]
    color: Annotated[Literal["red", "blue"], Field(description="Color of it.")] = "red"
    out: Annotated[Path, Field(description="File of it.")] = Path("out")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Example(size=1).size = 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size=0 must be greater than or equal to 1"),
        ({"size": 1, "color": "blu"}, "color='blu' must be 'red' or 'blue'; did you mean 'blue'?"),
        ({"size": 1, "sise": 2}, "sise: unknown setting; did you mean 'size'?"),
        ({}, "size is needed: Size of it"),
        ({"size": 0, "hue": "red"}, "size=0 must be greater than or equal to 1; hue: unknown setting"),
    ],
)
def test_faults_in_python(values, message):
    with pytest.raises(InvalidConfig) as caught:
        Example(**values)
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, InputError)
    assert caught.value.config_class is Example


def test_flags_override_the_file_and_the_file_overrides_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('size = 2\nout = "there"\n')
    assert load_config(Example, {"size": 3}, path) == Example(size=3, out=Path("there"))
    assert load_config(Example, {"size": 3}).color == "red"


def test_keys_have_dashes_or_underscores_or_former_names(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('size = 2\nhue = "blue"\n')
    assert load_config(Example, {}, path).color == "blue"
    with pytest.raises(InputError, match="--hue: unknown setting"):  # a flag has its present name only
        load_config(Example, {"size": 1, "hue": "blue"})


def test_each_fault_has_its_place(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('size = 0\ncolr = "red"\n')
    with pytest.raises(InputError) as caught:
        load_config(Example, {"color": "#"}, path)
    first, *faults = str(caught.value).splitlines()
    assert first == "3 settings cannot be used:"
    assert sorted(fault.strip() for fault in faults) == sorted(
        [
            f"{path}: size: must be greater than or equal to 1 (given: 0)",
            "--color: must be 'red' or 'blue' (given: '#')",
            f"{path}: colr: unknown setting; did you mean 'color'?",
        ]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"size = \n", "not TOML: "),
        (b'color = "\xff"\n', "not TOML: "),
        (b"a-b = 1\na_b = 2\n", "a-b is set twice, with dashes and with underscores"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.toml: ") as caught:
        load_config(Example, {"size": 1}, path)
    assert message in str(caught.value)


def test_settings_are_shown_as_a_user_types_them():
    before = {"rank": 3, "text": ["a", "b c"], "warmup": True, "memory": None, "data": "x", "same": 1}
    now = {"rank": 2, "text": [], "warmup": False, "memory": "1 GB", "data": "y", "same": 1}
    assert changes_text(before, now, {"data": "other data"}) == (
        "--rank 3 (now --rank 2), --text a --text 'b c' (now no --text), --warmup (now --no-warmup), "
        "no --memory (now --memory '1 GB'), other data"
    )
    assert changes_text(now, now) == ""
