"""Collections in a recipe: which data sets are joined, what is read of each, what may be discovered where, and what makes no
sense of it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multidense.data.description import read_description, read_splits
from multidense.data.folder import Folder
from multidense.data.joined import Joined, check_agreement, check_sampling
from multidense.data.reader import Reader
from multidense.data.subset import Subset, evenly
from multidense.suggest import nearest
from multidense.types import MultidenseError

if TYPE_CHECKING:
    from multidense.recipe import Recipe


@dataclass(frozen=True)
class Collection:
    """One of the data sets that the reader "joined" joins.

    Args:
        description: a YAML file, relative to the recipe or to where the command is run.
        root: where the described files lie, if not where the description says, nor in data.root by the collection's name.
        train: how many training images, evenly spread; left out, all.
        val: how many validation images, evenly spread; left out, all.
        tasks: the tasks to read; left out, those of the recipe's that are described.
        without: ids of images that are not read, of any split; such as those that another collection has too.
    """

    description: str
    root: str | None = None
    train: int | None = None
    val: int | None = None
    tasks: list[str] | None = None
    without: list[str] | None = None


def check_collections(recipe: Recipe) -> None:
    """Refuse what a recipe says of collections where it makes no sense. MultidenseError names the key."""
    data = recipe.data
    if data.reader != "joined":
        said = {"data.collections": data.collections, "data.sampling": data.sampling != "size"}
        said |= {f"networks.{name}.collections": network.collections for name, network in recipe.networks.items()}
        said |= {f"{key}.collections": found.collections for key, found in _discoveries(recipe)}
        for key in (key for key, value in said.items() if value):
            raise MultidenseError(f"{key}: collections are of the reader 'joined', found data.reader {data.reader!r}")
        return
    if not data.collections:
        raise MultidenseError("data: the reader 'joined' needs data.collections, such as {NAME: {description: FILE}, …}")
    if data.description:
        raise MultidenseError("data.description: of the reader 'joined' each of data.collections has a description of its own")
    if data.size is None:
        raise MultidenseError("data.size: joined collections need one [HEIGHT, WIDTH] that all their images are resized to")
    for name, collection in data.collections.items():
        key = f"data.collections.{name}"
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise MultidenseError(
                f"data.collections: {name!r} becomes a folder: begin with a letter or digit, use letters, digits, '.', '_', "
                "'+' and '-' only"
            )
        for split in ("train", "val"):
            if (wanted := getattr(collection, split)) is not None and wanted < 1:
                raise MultidenseError(f"{key}.{split} must be at least 1, found {wanted}")
        _known(f"{key}.tasks", collection.tasks, recipe.tasks)
    check_sampling(data.sampling, list(data.collections))
    for name, network in recipe.networks.items():
        _known(f"networks.{name}.collections", network.collections, data.collections)
        if network.collections == []:
            raise MultidenseError(f"networks.{name}.collections names none; leave it out for all of them")
        if network.teachers and not recipe.discovery_of(network).collections:
            raise MultidenseError(
                f"networks.{name} learns from what is discovered, but nothing is listed: say with discovery.collections "
                f"which tasks to discover on which collection, such as {{{next(iter(data.collections))}: "
                f"[{', '.join(list(recipe.tasks)[:2])}]}}"
            )
    for key, found in _discoveries(recipe):
        _known(f"{key}.collections", found.collections, data.collections)
        for one, tasks in (found.collections or {}).items():
            _known(f"{key}.collections.{one}", tasks, recipe.tasks)


def _discoveries(recipe: Recipe) -> Iterator[tuple[str, object]]:
    """Every section of a recipe that says how labels are discovered, by its key."""
    yield "discovery", recipe.discovery
    for name, network in recipe.networks.items():
        if network.discovery:
            yield f"networks.{name}.discovery", network.discovery


def _known(key: str, names: Sequence[str] | Mapping | None, known: Mapping) -> None:
    for name in names or ():
        if name not in known:
            raise MultidenseError(f"{key}: there is no {name!r}{nearest(name, known)}; there are {', '.join(known)}")


def root_of(recipe: Recipe, name: str) -> str | None:
    """Where the files of a collection lie: where it says so itself, else in `data.root` by its name, else None (its description
    says it).
    """
    own, above = recipe.data.collections[name].root, recipe.data.root
    return own or (str(Path(above) / name) if above else None)


def joined_reader(recipe: Recipe, split: str) -> Joined:
    """One split of all collections of a recipe, with all their labels. MultidenseError where they do not fit together."""
    tasks = {task.name: task for task in recipe.task_objects()}
    wanted: dict[str, list[str]] = {}
    described = {}
    for name, collection in recipe.data.collections.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing is read yet
            whole = Folder(collection.description, split, root=root_of(recipe, name), ids=())
        there = {task.name: task for task in whole.tasks}
        _known(f"data.collections.{name}.tasks", collection.tasks, there)
        wanted[name] = [task for task in tasks if task in (there if collection.tasks is None else collection.tasks)]
        if not wanted[name] and collection.tasks is None:
            raise MultidenseError(
                f"data.collections.{name}: {collection.description} describes {', '.join(there) or 'no task'}, none of the "
                f"recipe's tasks {', '.join(tasks)}. Leave the collection out, or add a task."
            )
        described[name] = ([there[task] for task in wanted[name]], whole.class_names)
    check_agreement(described)
    readers: dict[str, Reader] = {}
    for name, collection in recipe.data.collections.items():
        chosen = [tasks[task] for task in wanted[name]]
        reader = Folder(collection.description, split, chosen, size=recipe.data.size, root=root_of(recipe, name))
        readers[name] = _read_of(recipe, name, reader)
    lacking = [task for task in tasks if not any(task in names for names in wanted.values())]
    if lacking:
        raise MultidenseError(f"tasks: no collection labels {', '.join(lacking)}; take it out, or add one that does")
    return Joined(readers, recipe.data.sampling)


def _read_of(recipe: Recipe, name: str, reader: Folder) -> Reader:
    """The images of a collection's split that are read: not those it is `without`, and of the others as many as it says."""
    collection, key = recipe.data.collections[name], f"data.collections.{name}.without"
    kept: Reader = reader
    if collection.without:
        described = read_splits(read_description(collection.description)[0]).data
        known = {one for split in described for one in Folder(collection.description, str(split), (), root=reader.root).ids}
        for one in collection.without:
            if one not in known:
                raise MultidenseError(
                    f"{key}: no split has an image {one!r}{nearest(one, sorted(known))}. Write ids as they stand in the "
                    "splits, those of digits in quotation marks"
                )
        kept = Subset(reader, [index for index, one in enumerate(reader.ids) if one not in collection.without])
        if not len(kept):
            raise MultidenseError(f"{key} leaves no image to '{reader.split}'; take out the collection instead")
    wanted = {"train": collection.train, "val": collection.val}.get(reader.split)
    return Subset(kept, evenly(len(kept), wanted)) if wanted else kept


def of_collections(reader: Reader, named: Sequence[str] | None) -> Reader:
    """The images of these collections; all where none are named."""
    if named is None:
        return reader
    return Subset(reader, [index for index in range(len(reader)) if reader.collection_of(index) in named])


def check_labelled(recipe: Recipe, network: str, shown: Reader) -> None:
    """Refuse a network without teachers that has a task for which the images it is shown have no label."""
    settings = recipe.networks[network]
    labelled = frozenset().union(*(shown.annotated(index) for index in range(len(shown))))
    lacking = [task.name for task in recipe.task_objects(network) if task.name not in labelled]
    if lacking and not settings.teachers:
        where = ", ".join(settings.collections or recipe.data.collections)
        raise MultidenseError(
            f"networks.{network}: no training image of {where} is labelled for {', '.join(lacking)}. "
            f"Name its tasks ({', '.join(sorted(labelled))}), or give it further collections"
        )


def checked_descriptions(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each collection its name, and what of it a check looks at: description, tasks, root, images left out."""
    for name, collection in recipe.data.collections.items():
        described = read_description(collection.description)[0].section("tasks").data
        names = described if collection.tasks is None else collection.tasks
        yield (
            name,
            {
                "description": collection.description,
                "tasks": [one for one in recipe.task_objects() if one.name in names],
                "root": root_of(recipe, name),
                "without": collection.without or (),
            },
        )
