"""How the package is laid out: who imports whom, where task names stand, what is public."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import multidense
from multidense.tasks import TASKS

HOUSE = Path(multidense.__file__).parent
MODULES = {str(path.relative_to(HOUSE).with_suffix("")).replace("/", "."): path for path in sorted(HOUSE.rglob("*.py"))}
PUBLIC = Path(__file__).with_name("public_names.txt").read_text().split()

LAYERS = {
    "ground": "types ops meters boundaries correspondence thinning processes pictures codebook compat files suggest version "
    "progress",
    "tasks": "task tasks",
    "data": "data",
    "models": "models",
    "learning": "objective balancing gradient_methods regularizer regularizers chance consistency contrast task_paths "
    "thresholds parameters",
    "running": "train feed spawned checkpoint store discovery evaluation quality tokens predict scorers share_scorers scoring",
    "telling": "results report curves tables quality_figures token_figures check_page published paper_table comparison_table "
    "comparison_plot collection_tables",
    "surface": "config recipe run jobs child comparison compare_command cli command_words data_command "
    "scoring_command joining sources recipes __init__ __main__",
}
MAY_IMPORT = {
    "ground": {"ground"},
    "tasks": {"ground", "tasks"},
    "data": {"ground", "tasks", "data"},
    "models": {"ground", "tasks", "models"},
    "learning": {"ground", "tasks", "learning"},
    "running": {"ground", "tasks", "data", "models", "learning", "running"},
    "telling": {"telling"},
    "surface": set(LAYERS),
}
ALSO = {
    "telling": {"types", "pictures", "files", "version", "suggest"},
    "learning": {"models.layers", "models.backbones"},
    "evaluation": {"results"},
}
"""Single modules that a layer, or a module, may import beside: what is told is made by what measures it."""

READERS = {
    *("data.folder", "data.encodings", "data.description", "data.rooms"),
    *(
        "data.nyuv2",
        "data._nyuv2_classes",
        "data._nyuv2_normals",
        "data.cityscapes",
        "data.pascal_context",
        "data._pascal_classes",
    ),
}
"""The dataset readers and their descriptions: files name tasks."""

trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
each_module = pytest.mark.parametrize("module", MODULES)


def layer_of(module: str) -> str | None:
    room = module.partition(".")[0]
    return next((layer for layer, rooms in LAYERS.items() if room in rooms.split()), None)


def imported(module: str) -> Iterator[str]:
    """The modules of the house that a module imports, wherever in it, by their names below `multidense`."""
    package = module.split(".")[:-1]
    for node in ast.walk(trees[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("multidense.") for alias in node.names if alias.name.startswith("multidense."))
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*(["multidense"] if node.level else []), *base, *filter(None, [node.module])])
            if whole == "multidense":
                yield from (alias.name for alias in node.names)
            elif whole.startswith("multidense."):
                below = whole.removeprefix("multidense.")
                inner = [f"{below}.{alias.name}" for alias in node.names]
                yield from (name if name in MODULES or f"{name}.__init__" in MODULES else below for name in inner)


@each_module
def test_every_module_has_its_layer(module):
    assert layer_of(module), f"{module} stands in no layer: name it in LAYERS"


@each_module
def test_a_module_imports_only_what_its_layer_may(module):
    layer = layer_of(module)
    also = ALSO.get(layer, set()) | ALSO.get(module, set())
    wrong = [
        name
        for name in imported(module)
        if layer_of(name) not in MAY_IMPORT[layer] and not any(f"{name}.".startswith(f"{each}.") for each in also)
    ]
    assert not wrong, f"{module} ({layer}) imports {', '.join(wrong)}"


def test_imports_are_seen():
    assert {"files", "meters", "ops", "types"} <= set(imported("task"))
    assert "pictures" in set(imported("evaluation")), "also `from multidense import pictures`"
    assert "report" in set(imported("cli")), "also inside functions"


def strings(module: str) -> Iterator[ast.Constant]:
    """Every string of a module but its docstrings and the bare strings that explain a field."""
    explaining = {id(node.value) for node in ast.walk(trees[module]) if isinstance(node, ast.Expr)}
    for node in ast.walk(trees[module]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explaining:
            yield node


@each_module
def test_no_task_is_named_outside_tasks_and_readers(module):
    named = [f"line {node.lineno}: {node.value!r}" for node in strings(module) if node.value in TASKS]
    if not (module.startswith("tasks.") or module in READERS):
        assert not named


def test_task_names_would_be_seen():
    assert {node.value for node in strings("data.rooms")} & set(TASKS) == set(TASKS)


@each_module
def test_nothing_is_unpickled(module):
    for node in ast.walk(trees[module]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.partition(".")[0] for alias in node.names} | {getattr(node, "module", "") or ""}
            assert not names & {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}, f"line {node.lineno}"
        if isinstance(node, ast.Call):
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert said.get("allow_pickle") == "False", f"line {node.lineno}"
            if ast.unparse(node.func) == "torch.load":
                assert said.get("weights_only") == "True", f"line {node.lineno}"
            assert not re.search(r"\b(read_pickle|unsafe_load|full_load)$", ast.unparse(node.func)), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and node.attr.endswith("Loader") and ast.unparse(node.value) == "yaml":
            assert "Safe" in node.attr, f"line {node.lineno}"


# The door


def test_the_public_names_are_those_on_the_list():
    assert sorted(multidense.__all__) == PUBLIC, "a public name came or went: change tests/public_names.txt with it"
    assert dir(multidense) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported_and_says_what_it_is(name):
    value = getattr(multidense, name)
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'multidense' has no attribute 'fitt'"):
        multidense.fitt  # noqa: B018


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []], ids=str)
def test_help_comes_without_torch(arguments):
    code = f"import sys, multidense.cli; multidense.cli.main({arguments}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "multidense" in done.stdout


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "multidense", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"multidense {multidense.__version__}\n"
