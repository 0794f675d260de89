"""Registries find objects by name, and suggest the nearest one for a wrong name."""

import sys
import threading

import pytest

from taskedge.errors import InputError, UnknownName
from taskedge.forms.kernels import KERNELS
from taskedge.registry import Registry
from taskedge.selection.allocations import ALLOCATIONS
from taskedge.selection.rules import RULES


def test_built_in_objects_are_found_without_imports_by_the_caller():
    assert list(RULES) == [
        "activation",
        "change",
        "first_batch",
        "fisher",
        "fisher_bottom",
        "gradient",
        "magnitude",
        "magnitude_bottom",
        "mean_activation",
        "principal",
        "pursuit",
        "pursuit_t",
        "random",
        "ratio",
        "snip",
        "spt",
        "taskedge",
    ]
    assert RULES.titles == [*RULES, "principal:R"]
    assert list(ALLOCATIONS) == ["block", "global", "global_per_neuron", "per_layer", "per_neuron"]
    assert ALLOCATIONS.titles == [*ALLOCATIONS, "N:M"]
    assert list(KERNELS) == ["gather", "numba", "thin"]


def test_an_unknown_name_lists_the_registered_names():
    with pytest.raises(UnknownName, match=r"unknown rule 'magnitud'; did you mean 'magnitude'\? \(known: activation, "):
        RULES["magnitud"]
    with pytest.raises(InputError, match=r"unknown rule 'zzz' \(known"):
        RULES["zzz"]
    with pytest.raises(
        UnknownName, match=r"unknown allocation 'globl'; did you mean 'global'\? \(known: N:M, block, global, "
    ):
        ALLOCATIONS["globl"]


def test_a_family_makes_the_things_that_its_pattern_names():
    things = Registry("thing", "taskedge.selection.rules")
    things.add("12", 0)
    things.add_family("a number", lambda name: int(name) if name.isdigit() else None)
    assert (things["12"], things["13"]) == (0, 13)
    with pytest.raises(UnknownName, match=r"unknown thing 'x' \(known: 12, a number\)"):
        things["x"]


def test_a_name_is_taken_once():
    things = Registry("thing", "taskedge.selection.rules")
    things.add("one", 1)
    with pytest.raises(ValueError, match="the thing 'one' is registered twice"):
        things.add("one", 2)
    assert things["one"] == 1
    assert "one" in things
    assert "two" not in things


def test_the_decorator_leaves_the_thing_as_it_is():
    things = Registry("thing", "taskedge.selection.rules")

    @things.register("double")
    def double(x):
        return 2 * x

    assert double(2) == things["double"](2) == 4


def test_a_registry_is_filled_by_a_module_or_by_a_package(tmp_path, monkeypatch):
    (tmp_path / "module_of_things.py").write_text("import test_things\ntest_things.THINGS.add('one', 1)\n")
    (tmp_path / "test_things.py").write_text("THINGS = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    import test_things

    test_things.THINGS = things = Registry("thing", "module_of_things")
    assert "module_of_things" not in sys.modules
    assert list(things) == ["one"]
    for name in ("module_of_things", "test_things"):
        del sys.modules[name]


def test_every_rule_has_a_summary():
    assert all(RULES[name].summary for name in RULES)


def test_threads_that_look_up_names_at_once_find_all_objects(tmp_path, monkeypatch):
    """The second asks while the first still imports."""
    package = tmp_path / "slow_things"
    package.mkdir()
    (package / "__init__.py").write_text("import threading\nSTARTED = threading.Event()\nTHINGS = None\n")
    (package / "one.py").write_text(
        "import time, slow_things as s\ns.STARTED.set()\ntime.sleep(0.2)\ns.THINGS.add('one', 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import slow_things

    slow_things.THINGS = things = Registry("thing", "slow_things")
    first = threading.Thread(target=lambda: list(things))
    first.start()
    slow_things.STARTED.wait()
    try:
        assert things["one"] == 1
    finally:
        first.join()
        for name in [name for name in sys.modules if name.startswith("slow_things")]:
            del sys.modules[name]


def test_a_deprecated_name_stands_for_the_present_one() -> None:
    registry: Registry[int] = Registry("number", "taskedge.errors")
    registry.add("new", 1)
    registry.deprecate("old", "new")
    assert registry["old"] == 1
    assert (registry.current_name("old"), registry.current_name("other")) == ("new", "other")
    assert list(registry) == ["new"]
