"""Comparing methods: named ones, or networks of the recipe, over several seeds, each seed one run.

A method is a network of the recipe, else an entry of the catalogue (`recipes/_methods.yaml`): settings that are put over those
of the recipe. Its teachers come with it.

OUT/seed-N/        a run for each seed: the recipe with the methods' networks, `seed` and `labels.seed` set to N
OUT/compare.json   every score, settings, seeds, commit, versions, machine; compare.md, .svg, .html: told
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from multidense import comparison_table
from multidense.balancing import Balancing, make_balancer
from multidense.comparison_plot import plot
from multidense.comparison_table import Compared
from multidense.config import load_recipe
from multidense.files import plain, write_json, write_text
from multidense.jobs import places, plan, with_teachers, work_off
from multidense.published import Published, tables
from multidense.recipe import Network, Recipe
from multidense.results import Results, environment
from multidense.run import Run, do
from multidense.suggest import nearest
from multidense.types import MultidenseError


@dataclass(frozen=True)
class Method:
    """An entry of the catalogue; the head of `recipes/_methods.yaml` says what each setting means."""

    title: str
    about: str
    needs: str = ""
    row: str | None = None
    like: str | None = None
    teacher: str | None = None
    each_task: bool = False
    network: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """A method of a comparison: the `networks` that make it, whether each of them has one task, and those they learn from."""

    name: str
    title: str
    networks: tuple[str, ...]
    teachers: tuple[str, ...] = ()
    each_task: bool = False


@cache
def catalogue() -> dict[str, Method]:
    """The methods that come with the package, by name."""
    text = (files("multidense") / "recipes" / "_methods.yaml").read_text(encoding="utf-8")
    return {name: Method(**settings) for name, settings in yaml.safe_load(text).items()}


# What is compared ---------------------------------------------------------------------------------------------------------


def choose(recipe: Recipe, methods: Sequence[str]) -> tuple[Recipe, list[Chosen]]:
    """The recipe with the networks of the methods (all of its own where none are named), and the methods with the ones they
    learn from, in the order of training. What makes no sense is refused before anything is trained.
    """
    chosen: dict[str, Chosen] = {}
    for name in methods or _grouped(recipe, recipe.networks):
        recipe = _add(recipe, chosen, name)
    recipe = _read_again(recipe)
    for name in dict.fromkeys(network for method in chosen.values() for network in method.networks):
        balancing = recipe.training_of(recipe.networks[name]).balancing
        try:
            make_balancer(balancing, [task.name for task in recipe.task_objects(name)])
        except (MultidenseError, ValueError) as error:
            raise MultidenseError(f"networks.{name}: {error}; or leave it out") from error
    return recipe, list(chosen.values())


def _add(recipe: Recipe, chosen: dict[str, Chosen], name: str) -> Recipe:
    """The recipe with a method and its teachers, which are put into `chosen`."""
    known = catalogue()
    if name in chosen:
        return recipe
    if name in recipe.networks:
        for teacher in _grouped(recipe, recipe.networks[name].teachers):
            recipe = _add(recipe, chosen, teacher)
        chosen[name] = Chosen(name, recipe.title(name), (name,), _learnt_from(recipe, [name]))
        return recipe
    if name not in known:
        own = ", ".join(recipe.networks) or "none"
        raise MultidenseError(
            f"there is no method {name!r}{nearest(name, [*recipe.networks, *known])}; networks of the recipe: {own}; "
            f"methods by name: {', '.join(known)} (`multidense compare --list` says what they are)"
        )
    method = known[name]
    if method.teacher:
        recipe = _add(recipe, chosen, method.teacher)
    taught_by = chosen[method.teacher].networks if method.teacher else ()
    network = _network(recipe, method, taught_by)
    networks = {name: network}
    if method.each_task:
        networks = {f"{name}-{task}": replace(network, tasks=[task], title=f"{method.title} {task}") for task in recipe.tasks}
    added = {each: network for each, network in networks.items() if each not in recipe.networks}
    recipe = replace(recipe, networks=recipe.networks | added, published=_rows(recipe, method, networks))
    chosen[name] = Chosen(name, method.title, tuple(networks), _learnt_from(recipe, networks), method.each_task)
    return recipe


def _network(recipe: Recipe, method: Method, teachers: Sequence[str]) -> Network:
    """The network of a method: the settings of the one it is like, the recipe's or the catalogue's, and over them its own."""
    below = Network()
    if method.like:
        below = recipe.networks.get(method.like) or _network(recipe, catalogue()[method.like], ())
    own: dict[str, Any] = dict(method.network) | {"title": method.title}
    own["teacher"] = (teachers[0] if len(teachers) == 1 else list(teachers)) if teachers else None
    for section, above in (("objective", recipe.training.objective), ("discovery", recipe.discovery)):
        if section in own:
            own[section] = replace(getattr(below, section) or above, **own[section])
    if "options" in own:
        own["options"] = below.options | own["options"]
    if "balancing" in own:
        own["balancing"] = Balancing(**own["balancing"])
    return replace(below, **own)


def _grouped(recipe: Recipe, networks: Iterable[str]) -> list[str]:
    """Networks as methods: those that are one for each task, by the name of the method they make together."""
    left, named = list(networks), []
    for name, method in catalogue().items():
        members = [f"{name}-{task}" for task in recipe.tasks]
        if method.each_task and set(members) <= set(left):
            left = [network for network in left if network not in members]
            named.append(name)
    return named + left


def _learnt_from(recipe: Recipe, networks: Iterable[str]) -> tuple[str, ...]:
    """The teachers of networks, theirs, and so on."""
    return tuple(name for name in with_teachers(recipe, networks) if name not in set(networks))


def _rows(recipe: Recipe, method: Method, networks: Iterable[str]) -> Published | None:
    """What the recipe says of published rows, with the row of the method where the paper has one for its setting."""
    said = recipe.published
    if said is None or method.row is None:
        return said
    alike = [(number, table) for number, table in tables().items() if table.dataset == said.dataset]
    alike.sort(key=lambda each: each[0] != said.table)
    for number, table in alike:
        if any(method.row in table.rows[setting] for setting in table.settings_of(said.setting)):
            rows = {network: [[number, said.setting, method.row]] for network in networks if network not in said.rows}
            return replace(said, rows=said.rows | rows)
    return said


def _read_again(recipe: Recipe) -> Recipe:
    """The recipe as its runs will read it; in reading, every network is looked at."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        recipe.save(path)
        try:
            return load_recipe(path)
        except MultidenseError as error:
            said = str(error).removeprefix(f"{path}: ")
            raise MultidenseError(
                f"{recipe.name} with these methods: {said}; change the recipe, or leave the method out"
            ) from error


# Running ------------------------------------------------------------------------------------------------------------------


def seed_runs(recipe: Recipe, seeds: Sequence[int], out: Path) -> dict[int, Run]:
    """The run of each seed, in a folder of its own below `out`; networks that a folder has beside those of the recipe stay."""
    runs = {}
    for seed in seeds:
        folder = Path(out) / f"seed-{seed}"
        mine = replace(recipe, seed=seed, labels=replace(recipe.labels, seed=seed))
        kept = folder / "recipe.yaml"
        if kept.exists() and kept.read_text(encoding="utf-8") != mine.to_yaml():
            mine = replace(mine, networks=mine.networks | _begun(load_recipe(kept), mine, folder))
        runs[seed] = Run(mine, folder)  # refuses a folder that holds other settings
    return runs


def _begun(before: Recipe, now: Recipe, folder: Path) -> dict[str, Network]:
    """Networks of an earlier comparison that this one does not have, and what they need."""
    extra = [name for name in before.networks if name not in now.networks and (folder / name).exists()]
    return {name: before.networks[name] for name in with_teachers(before, extra) if name not in now.networks}


def compare(
    recipe: Recipe,
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    out: Path | str | None = None,
    *,
    processes: int | None = None,
    baseline: str | None = None,
    train: bool = True,
) -> dict:
    """Train every method with every seed, as far as that is not done; tell all as files in `out`, and as what they say.

    Args:
        methods: networks of the recipe, or names of the catalogue; none: all networks of the recipe.
        seeds: of weights, order, augmentation and label assignment.
        out: folder of the runs and of what is told; None: `runs/NAME-compare`.
        processes: how many networks train side by side; None: one on each GPU, or as many as the recipe says or the cores
            allow; 0: one after the other in this process.
        baseline: the method that differences are to; None: the recipe's baseline, else the first method of all tasks.
        train: whether to train what is missing; else only what is there is told.

    A method that fails is among `failed` of what is returned and stops no other.
    """
    if not seeds or min(seeds) < 0:
        raise MultidenseError(f"seeds should be whole numbers from 0 on, found {list(seeds)}")
    folder = Path(out) if out else Path("runs") / f"{recipe.name}-compare"
    recipe, chosen = choose(recipe, methods)
    names = [method.name for method in chosen]
    if baseline is not None and baseline not in names:
        raise MultidenseError(
            f"the baseline {baseline!r} is not compared{nearest(baseline, names)}; there are {', '.join(names)}"
        )
    runs = seed_runs(recipe, list(dict.fromkeys(seeds)), folder)
    wanted = with_teachers(recipe, [network for method in chosen for network in method.networks])
    failed = {}
    if train:
        jobs = plan([run.folder for run in runs.values()], recipe, wanted)
        for run in runs.values() if jobs else ():
            _ = run.train  # the assignment is settled before several processes want it
        failed = {str(job): why for job, why in work_off(jobs, places(recipe, processes) if jobs else [], do).items()}
    told = comparison_table.tell(
        recipe.name,
        [gather(method, runs) for method in chosen],
        list(runs),
        reference=next((method.name for method in chosen if method.each_task), None),
        baseline=baseline or next((name for name in names if name == recipe.baseline), None),
    )
    settings = {method.name: {name: plain(asdict(recipe.networks[name])) for name in method.networks} for method in chosen}
    told |= {"failed": failed, "recipe": recipe.without_places().to_yaml(), "settings": settings, **environment()}
    _write(told, folder)
    return told


def _write(told: Mapping, folder: Path) -> None:
    drawn = plot(told)
    write_json(folder / "compare.json", told)
    write_text(folder / "compare.md", comparison_table.markdown(told))
    write_text(folder / "compare.svg", drawn)
    write_text(folder / "compare.html", comparison_table.page(told, drawn))


def gather(method: Chosen, runs: Mapping[int, Run]) -> Compared:
    """What there is of a method, by seed: of several networks scores and costs together. A seed counts once all are done."""
    results, before = {}, {}
    for seed, run in runs.items():
        there = run.results()
        if all(name in there for name in method.networks):
            results[seed] = together([there[name] for name in method.networks])
            if all(name in there for name in method.teachers):
                before[seed] = sum(there[name].cost.get("train_seconds", 0.0) for name in method.teachers)
    return Compared(method.name, method.title, results, before)


def together(results: Sequence[Results]) -> Results:
    """The results of networks with tasks of their own, as those of one: times, parameters and multiply–adds are added up, of
    peak memories the highest counts, for they train one after the other.
    """
    if len(results) == 1:
        return results[0]
    cost: dict[str, float] = {}
    for name in dict.fromkeys(name for one in results for name in one.cost):
        values = [one.cost[name] for one in results if name in one.cost]
        cost[name] = max(values) if name == "peak_memory_mb" else sum(values)
    joined = {
        part: {name: value for one in results for name, value in getattr(one, part).items()}
        for part in ("scores", "further", "per_class")
    }
    return Results(**joined, provenance=results[0].provenance, cost=cost)
