"""What is imported when, and from where: a quick command and a one-way map."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import oneshotgan

PACKAGE = Path(oneshotgan.__file__).parent
HEAVY = ("torch", "numpy", "av", "PIL", "safetensors", "rich.progress")
# The map: a module imports only from those before it. A package's parts stand where the package stands.
ORDER = (
    "errors",
    "",  # the package itself, which imports the rest only inside functions
    "files",
    "spread",
    "config",
    "layout",
    "curves",
    "media.shots",
    "media.pictures",
    "media.video",
    "media.reading",
    "media.writing",
    "media",
    "data",
    "augment",
    "models",
    "models.plan",
    "models.layers",
    "models.feature_augment",
    "models.generator",
    "models.discriminator",
    "losses",
    "ema",
    "parallel",
    "replay",
    "neighbours",
    "machine",
    "perceptual.weights",
    "perceptual.inception",
    "perceptual.lpips",
    "perceptual",
    "methods.oneshot",
    "methods.singan",
    "methods.fastgan",
    "methods",
    "progress",
    "run",
    "training",
    "hub",
    "sampling",
    "export",
    "metrics.frechet",
    "metrics.sifid",
    "metrics.ms_ssim",
    "metrics.jackknife",
    "metrics.diversity",
    "metrics.distance",
    "metrics.alignment",
    "metrics.figures",
    "metrics.evaluate",
    "metrics",
    "datasets",
    "tensorboard",
    "launch",
    "benchmark",
    "benchmark.suite",
    "benchmark.pace",
    "benchmark.case",
    "benchmark.board",
    "benchmark.cluster",
    "benchmark.runner",
    "benchmark.published",
    "benchmark.table",
    "report",
    "web",
    "web.library",
    "web.guard",
    "web.trainings",
    "web.inspect",
    "web.uploads",
    "web.worker",
    "web.artist",
    "web.drawing",
    "web.favourites",
    "web.app",
    "web.server",
    "cli",
    "__main__",
)


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "doing",
    [
        "import oneshotgan",
        "import oneshotgan.cli",
        "import sys; sys.argv = ['oneshotgan', '--help']; from oneshotgan.cli import main; main()",
        "import sys; sys.argv = ['oneshotgan', 'train', '--help']; from oneshotgan.cli import main; main()",
        "import sys; sys.argv = ['oneshotgan', 'serve', '--help']; from oneshotgan.cli import main; main()",
        "import oneshotgan.web.server",
        "import sys; sys.argv = ['oneshotgan', '--version']; from oneshotgan.cli import main; main()",
        "import sys; sys.argv = ['oneshotgan', 'settings']; from oneshotgan.cli import main; main()",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(doing: str) -> None:
    report = f"import sys; print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    printed = python(f"import atexit\natexit.register(lambda: exec({report!r}, {{}}))\n{doing}")
    assert printed.splitlines()[-1] == "LOADED []"


def test_help_comes_at_once() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "oneshotgan", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, times


def test_the_public_names_are_there() -> None:
    assert python("import oneshotgan as o; print(all(hasattr(o, name) for name in o.__all__))") == "True\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        oneshotgan.nothing  # noqa: B018


def modules() -> dict[str, Path]:
    """Every module of the package by its name below ``oneshotgan``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_at_once(path: Path) -> set[str]:
    """Names below ``oneshotgan`` that a module imports when it is imported itself.

    Imports in functions and under TYPE_CHECKING do not count.
    """
    known = modules()
    found: set[str] = set()

    def note(name: str) -> None:
        while name not in known:
            name = name.rpartition(".")[0]
        found.add(name)

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    if alias.name.split(".")[0] == "oneshotgan":
                        note(alias.name.removeprefix("oneshotgan").lstrip("."))
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: imports are absolute"
                if (child.module or "").split(".")[0] == "oneshotgan":
                    base = child.module.removeprefix("oneshotgan").lstrip(".")
                    for alias in child.names:
                        note(f"{base}.{alias.name}".lstrip("."))
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found


def test_every_module_has_its_place_on_the_map() -> None:
    assert sorted(modules()) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_modules_above_it(name: str) -> None:
    above = ORDER[: ORDER.index(name)]
    below = imported_at_once(modules()[name]) - set(above) - {name}
    assert not below, f"{name or 'the package'} imports {sorted(below)}, which stand below it on the map"


def test_the_package_as_a_program() -> None:
    words = [sys.executable, "-m", "oneshotgan", "--version"]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert printed == f"{oneshotgan.__version__}\n"
