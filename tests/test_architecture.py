"""Imports run in one direction, the command line stays light, and no file can run code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "taskedge"
FOUNDATION = {"errors", "registry", "files"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "registry": {"errors"},
    "files": {"errors"},
    "backbone": FOUNDATION,
    "selection": FOUNDATION | {"backbone"},
    "forms": FOUNDATION | {"backbone", "selection"},
    "delta": FOUNDATION | {"backbone", "forms"},
    "training": FOUNDATION | {"backbone", "selection", "forms", "delta", "measure"},
    "planning": FOUNDATION | {"backbone", "measure"},  # their file formats, which know no torch either
    "measure": FOUNDATION | {"backbone", "selection", "forms"},
    "cooperation": FOUNDATION | {"backbone", "selection", "forms", "delta", "training", "measure", "planning"},
    "flower": FOUNDATION | {"cooperation", "backbone", "delta", "measure", "planning"},
    "report": FOUNDATION | {"planning"},
    "fetch": FOUNDATION,
    "assets": FOUNDATION | {"fetch"},
    "demo": FOUNDATION | {"assets", "backbone", "delta", "measure", "training"},
    "__main__": {"cli"},
}


def imports() -> list[tuple[Path, str, str]]:
    """(file, its room, a room it imports) for every import of ours."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taskedge."):
                found.append((path, room, str(node.module).split(".")[1]))
    return found


def test_imports_run_in_one_direction() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}: {room} -> {other}"
        for path, room, other in imports()
        if room not in ("cli", "__init__") and other != room and other not in MAY_IMPORT[room]
    ]
    assert not wrong


def test_nothing_imports_the_command_line() -> None:
    assert not [path for path, room, other in imports() if other == "cli" and room not in ("cli", "__main__")]


def test_the_planner_loads_no_torch() -> None:
    modules = [f"taskedge.planning.{path.stem}" for path in (SOURCE / "planning").glob("[a-z]*.py")]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_can_run_code() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "joblib", "marshal", "shelve"}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("torch.load", "torch.save", "eval", "exec", "np.load"), path
