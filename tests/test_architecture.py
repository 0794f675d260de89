"""The shape of the source tree: one direction of imports, no cycles, no pickle, tests that mirror it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict

import pytest
from architecture import (
    CONTRIBUTING,
    COOPERATION,
    FOLDERS,
    IN_COOPERATION,
    ROOT,
    SOURCE,
    cycles,
    folder_of,
    graph,
    imported,
    modules,
    table,
)

TESTS = ROOT / "tests"

NOT_MIRRORED: dict[str, str] = {}
"""Modules without a test file at the mirrored path, and where they are tested instead."""


def test_imports_run_in_one_direction():
    wrong = [
        f"{module} -> {target}"
        for module, targets in graph().items()
        for target in targets
        if folder_of(module) != "cli" and folder_of(target) not in FOLDERS[folder_of(module)].allowed
    ]
    assert not wrong


@pytest.mark.slow
def test_every_folder_has_a_rule():
    assert {folder_of(module) for module in graph()} == set(FOLDERS)


@pytest.mark.slow
def test_the_folders_of_cooperation_run_in_one_direction():
    wrong = []
    for module, targets in graph().items():
        parts = module.split(".")
        if parts[1] != "cooperation" or len(parts) < 4:
            continue
        for target in targets:
            inner = target.split(".")
            if inner[1] == "cooperation" and len(inner) > 3 and inner[2] not in (parts[2], *IN_COOPERATION[parts[2]]):
                wrong.append(f"{module} -> {target}")
    assert not wrong


def test_the_rules_of_cooperation_allow_no_cycle():
    assert all(set(IN_COOPERATION[name]) <= set(COOPERATION[:i]) for i, name in enumerate(COOPERATION))


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle():
    assert cycles(graph()) == []


def test_cycles_are_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"f"}, "f": {"e"}, "g": set()}
    assert sorted(cycles(edges)) == [["a", "b", "c"], ["e", "f"]]


@pytest.mark.slow
def test_the_library_does_not_import_its_own_front_door():
    known = modules()
    wrong = [
        f"{module}:{line}"
        for module, path in known.items()
        if module != "taskedge" and folder_of(module) not in ("cli", "demo", "__main__")
        for line, target in imported(path, known)
        if target == "taskedge"
    ]
    assert not wrong, "`import taskedge` imports every folder: import the module that has the name"


def test_every_way_to_import_is_seen(tmp_path):
    code = (
        "import taskedge as te\nfrom taskedge import errors\nfrom taskedge.io import atomic\nimport taskedge.registry\n"
    )
    path = tmp_path / "module.py"
    path.write_text(code)
    seen = [target for _, target in imported(path, modules())]
    assert seen == ["taskedge", "taskedge.errors", "taskedge.io.atomic", "taskedge.registry"]


@pytest.mark.slow
def test_nothing_imports_the_command_line():
    wrong = [
        module
        for module, targets in graph().items()
        if folder_of(module) not in ("cli", "__main__") and any(folder_of(target) == "cli" for target in targets)
    ]
    assert not wrong


def test_the_planner_loads_no_torch():
    names = [name for name in modules() if name.startswith("taskedge.planning.")]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_no_file_can_run_code():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "joblib", "marshal", "shelve"}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("torch.load", "torch.save", "eval", "exec", "np.load"), path


@pytest.mark.slow
def test_only_one_module_writes_atomically():
    """A file that is written aside and renamed is written by io/atomic.py."""
    wrong = []
    for path in SOURCE.rglob("*.py"):
        if path == SOURCE / "io" / "atomic.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "os.fsync",
                "os.replace",
                "os.rename",
                "tempfile.mkstemp",
                "tempfile.NamedTemporaryFile",
            ):
                wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert not wrong


@pytest.mark.slow
def test_only_the_container_reads_and_writes_safetensors():
    allowed = {"io/container.py", *FOREIGN_SAFETENSORS}
    wrong = []
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "safetensors":
                names = {alias.name for alias in node.names} - {"SafetensorError"}
                if names and name not in allowed:
                    wrong.append(f"{name}:{node.lineno}: {sorted(names)}")
    assert not wrong


FOREIGN_SAFETENSORS = {
    "delta/interop/peft_export.py",  # PEFT's own layout
    "delta/interop/peft_import.py",
    "delta/interop/read_back.py",
    "backbone/loading.py",  # the base's checkpoint
    "backbone/load_report.py",  # which file of the base's checkpoint is damaged
    "backbone/storage/memory_map.py",
    "demo/assets/model_assets.py",
    "demo/assets/dinov2.py",
    "cooperation/cut/base_parts.py",  # the parts of the base's checkpoint outside its blocks
}
"""Modules that read or write files whose layout other programs define."""


def test_file_names_are_unique():
    """A file name means one thing; a verb's module may have the name of the module that it calls."""
    paths = defaultdict(list)
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        if path.name not in ("__init__.py", "__main__.py") and not name.startswith("cli/"):
            paths[path.stem].append(name)
    assert [names for names in paths.values() if len(names) > 1] == []


def test_modules_are_no_crumbs_and_no_monoliths():
    lines = {
        path.relative_to(SOURCE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    crumbs = [name for name, count in lines.items() if count < 25]
    long = [name for name, count in lines.items() if count > 400]
    assert len(crumbs) <= 8, crumbs
    assert len(long) <= 5, long


def test_tests_mirror_the_tree():
    missing = []
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE)
        if path.name in ("__init__.py", "__main__.py") or name.as_posix() in NOT_MIRRORED:
            continue
        stem = path.stem.rstrip("_")
        if not (TESTS / name.parent / f"test_{stem}.py").exists():
            missing.append(name.as_posix())
    assert not missing
    assert all((SOURCE / name).exists() and (TESTS / where).exists() for name, where in NOT_MIRRORED.items())


def test_the_table_in_contributing_follows_from_the_rules():
    assert table() in CONTRIBUTING.read_text(encoding="utf-8"), "run: python tests/helpers/architecture.py"
