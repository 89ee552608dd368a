"""The rooms of the house, and which knows which: printed with ``pytest -s``. ``make check`` holds the layers."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

from components.code import ROOT, imports


def room(path: str) -> str:
    """``components/ct/nifti.py`` is in ``ct``; a module right under ``components`` is a room of its own."""
    parts = Path(path).parts
    return parts[1] if len(parts) > 2 else Path(path).stem


def test_the_rooms_form_no_cycle_late_imports_counted() -> None:
    graph: dict[str, set[str]] = {}
    for path in sorted((ROOT / "components").rglob("*.py")):
        module = path.relative_to(ROOT).as_posix()
        graph.setdefault(room(module), set()).update(room(other) for other in imports(module))
    for name, known in graph.items():
        known -= {name, "__init__"}
        print(f"{name:<12} {', '.join(sorted(known))}")
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("errors") < order.index("ct") < order.index("sources") < order.index("cohort")
    assert order.index("ct") < order.index("models") < order.index("pretrain") < order.index("registry")
