"""Sources: the images that a recipe names, as one reader."""

from __future__ import annotations

from multidense.data import Folder, Reader, Rooms
from multidense.data.subset import Subset, evenly
from multidense.joining import joined_reader
from multidense.recipe import Recipe
from multidense.types import MultidenseError


def reader_of(recipe: Recipe, split: str) -> Reader:
    """One split of a recipe's data, with all its labels."""
    data, tasks, wanted = recipe.data, recipe.task_objects(), getattr(recipe.data, split, None)
    if data.reader == "rooms":
        return Rooms(tasks, split, size=data.size or (48, 64), length=wanted, seed=data.seed, cache=data.cache)
    if data.reader == "joined":
        reader = joined_reader(recipe, split)
    elif data.reader == "folder":
        reader = Folder(data.description, split, tasks=tasks, size=data.size, root=data.root)
    elif data.root is None:
        raise MultidenseError(
            f"the data set {data.reader} has to be told where it lies: --root DIR, or data.root in the recipe"
        )
    else:
        from multidense.data.benchmarks import BENCHMARKS  # they read formats that nothing else needs

        reader = BENCHMARKS[data.reader](data.root, split, tasks, size=data.size, layout=data.layout, **data.options)
    return Subset(reader, evenly(len(reader), wanted)) if wanted else reader
