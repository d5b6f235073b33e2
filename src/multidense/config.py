"""Recipes from YAML files and the command line: found, read, overridden, refused by file and key where they make no sense."""

from __future__ import annotations

import copy
import re
from dataclasses import fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path

import yaml

from multidense.balancing import Balancing
from multidense.joining import Collection
from multidense.models.layers import shapes_only
from multidense.models.multitask import MultiTask, build_model
from multidense.objective import Objective
from multidense.parameters import frozen_names
from multidense.published import Published
from multidense.recipe import Data, Discovery, Network, Recipe, readable
from multidense.suggest import nearest
from multidense.thresholds import rules_for
from multidense.types import MultidenseError

NAMED = {(Recipe, "networks"): Network, (Data, "collections"): Collection}
"""Sections that hold several of a kind by name."""


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(files("multidense") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if not path.stem.startswith("_")}


def recipe_path(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that is shipped."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise MultidenseError(f"the recipe {path} is not there; shipped ones are {', '.join(shipped())}")
    if name not in shipped():
        raise MultidenseError(
            f"there is no recipe {name!r}{nearest(name, shipped())}; there are {', '.join(shipped())}, or give a .yaml file"
        )
    return shipped()[name]


def is_recipe(path: Path) -> bool:
    """Whether a file looks like a recipe, not like a description of data."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(given, dict) and ("networks" in given or "extends" in given)


def load_recipe(path: Path, overrides: list[str] = ()) -> Recipe:
    """The recipe of a file, with command-line overrides such as `["--training.epochs", "5"]`; mistakes are named by file
    and key.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    path = Path(path)
    given = _read(path)
    given, overrides = _with_task_settings(given, list(overrides))
    _check_keys(given, Recipe, str(path), "")
    parser = ArgumentParser(exit_on_error=False, prog="multidense run")
    parser.add_class_arguments(Recipe)
    where = str(path)
    try:
        settings = parser.parse_object(given)
        if overrides:
            where = "the command line"
            settings = parser.parse_args(overrides, namespace=settings)
        recipe = Recipe(**vars(parser.instantiate(settings)))
        _check_networks(recipe)
        there = {
            name: replace(one, description=_found(one.description, path), root=_found(one.root, path))
            for name, one in recipe.data.collections.items()
        }
        here = {"description": _found(recipe.data.description, path), "root": _found(recipe.data.root, path)}
        recipe = replace(
            recipe,
            data=replace(recipe.data, collections=there, **here),
            labels=replace(recipe.labels, file=_found(recipe.labels.file, path)),
            backbone_options=_with_weights(recipe.backbone_options, path),
            networks={
                name: replace(network, options=_with_weights(network.options, path))
                for name, network in recipe.networks.items()
            },
        )
    except ArgumentError as error:
        raise MultidenseError(f"{where}: {readable(str(error))}{_meant(str(error), parser)}") from error
    except MultidenseError as error:
        raise MultidenseError(f"{where}: {error}") from error
    except (ValueError, TypeError) as error:
        raise MultidenseError(f"{where}: {readable(str(error))}") from error
    return recipe


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """The settings of a file, put over those of the file that it `extends`, which lies beside it."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}," if mark else str(path)
        what = getattr(error, "problem", None) or getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise MultidenseError(f"{where} cannot be read as YAML: {what}") from error
    if not isinstance(given, dict):
        raise MultidenseError(f"{path}: expected settings such as 'name: …', found {type(given).__name__}")
    extended = given.pop("extends", None)
    if extended is None:
        return given
    beside = path.parent / str(extended)
    if beside.resolve() in (*(one.resolve() for one in above), path.resolve()):
        raise MultidenseError(f"{path}: extends {extended}, which extends this file in turn; take one of them out")
    if not beside.is_file():
        raise MultidenseError(f"{path}: extends {extended}, but there is no such file beside it")
    return _over(_read(beside, (*above, path)), given)


def _over(below: dict, above: dict) -> dict:
    """The settings `above`, and of those `below` what they do not say; sections are joined key by key."""
    joined = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(joined.get(key), dict)
        joined[key] = _over(joined[key], value) if both else value
    return joined


def settings_help() -> str:
    """Every setting of a recipe, with its type, default and meaning."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="multidense run", add_help=False)
    parser.add_class_arguments(Recipe)
    return parser.format_help().partition("\n\n")[2]


def _with_task_settings(given: dict, overrides: list[str]) -> tuple[dict, list[str]]:
    """The file's settings with those of single tasks (`--tasks.depth.bins 40`) put in, and the overrides that are left.

    Tasks are free mappings, which the parser would replace as a whole.
    """
    given, left = copy.deepcopy(given), []
    while overrides:
        option, found, value = overrides.pop(0).partition("=")
        parts = option.split(".")
        if parts[0] == "--tasks" and len(parts) == 3 and isinstance(given.get("tasks"), dict):
            value = value if found or not overrides else overrides.pop(0)
            given["tasks"][parts[1]] = (given["tasks"].get(parts[1]) or {}) | {parts[2]: yaml.safe_load(value)}
        else:
            left.append(option + found + value)
    return given, left


def _check_keys(given: dict, kind: type, file: str, path: str) -> None:
    """Refuse keys that a section does not have, naming the nearest that it has."""
    sections = {f.name: f for f in fields(kind)}
    for key, value in given.items():
        if key not in sections:
            raise MultidenseError(
                f"{file}: unknown key {path + str(key)!r}{nearest(str(key), sections)}; "
                f"{'here' if path else 'at the top'} there are {', '.join(sections)}"
            )
        inner = _section(kind, key)
        if inner and isinstance(value, dict):
            _check_keys(value, inner, file, f"{path}{key}.")
        elif (kind, key) in NAMED and isinstance(value, dict):
            for name, one in value.items():
                if isinstance(one, dict):
                    _check_keys(one, NAMED[kind, key], file, f"{path}{key}.{name}.")


def _check_networks(recipe: Recipe) -> None:
    """Build every network without memory, and look whether teachers can teach: mistakes show before anything is trained."""
    built: dict[str, MultiTask] = {}
    for name, network in recipe.networks.items():
        kind = repr((network.decoder, network.tasks, network.options))
        options = recipe.options_of(network)
        if kind not in built:
            with shapes_only():
                built[kind] = build_model(
                    recipe.backbone, network.decoder, recipe.task_objects(name), recipe.width, initial=False, **options
                )
        model = built[kind]
        frozen_names(model, recipe.training.freeze)
        students = [other for other in recipe.networks.values() if name in other.teachers]
        for student in students:
            rules_for(list(model.task_names), recipe.discovery_of(student).threshold, others=list(recipe.tasks))
        if students:
            unsure = [task.name for task in model.tasks if not task.has_confidence]
            if unsure:
                raise MultidenseError(
                    f"networks.{name} is a teacher, but {', '.join(unsure)} only regress(es) and has no confidence: "
                    "give depth bins and normals centers"
                )


def _section(kind: type, key: str) -> type | None:
    """The dataclass behind a key, if it is a section of its own."""
    factory = next(f.default_factory for f in fields(kind) if f.name == key)
    if isinstance(factory, type) and is_dataclass(factory):
        return factory
    inner = {"published": Published, "objective": Objective, "discovery": Discovery, "balancing": Balancing}
    return inner.get(key) if kind in (Recipe, Network) else None


def _found(name: str | None, recipe: Path) -> str | None:
    """A file or folder that a recipe names, beside the recipe or from where the command is run, as a path good from
    anywhere.
    """
    if name is None:
        return None
    beside, here = recipe.parent / name, Path(name)
    return str((beside if beside.exists() and not here.exists() else here).resolve())


def _with_weights(options: dict, recipe: Path) -> dict:
    """Settings of a backbone with the file of its weights as a path good from anywhere."""
    weights = options.get("weights")
    return options | {"weights": _found(weights, recipe)} if isinstance(weights, str) else options


def _meant(message: str, parser) -> str:
    """The option that an unrecognised one was probably meant to be."""
    unknown = re.search(r"unrecognized arguments: (--\S+)", message)
    options = [option for action in parser._actions for option in action.option_strings]
    return nearest(unknown[1].partition("=")[0], options) if unknown else ""
