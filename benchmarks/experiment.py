"""Does discovery help? Every network of a recipe over several seeds, in one table and one plot, with paired differences.

    python benchmarks/experiment.py benchmarks/experiments/rooms.yaml
    python benchmarks/experiment.py benchmarks/experiments/nyuv2.yaml --data.root FOLDER

A seed is one run of the recipe: of weights, order and augmentation, and of who is labelled for what. Networks train side by
side, `--processes` at a time (one on a GPU), each after its teachers; what is done is skipped, so the command can be killed at
any moment and called again, also with more networks or seeds. `--networks` trains only these, and the teachers they need.

`delta_mtl` is against the single-task networks (`stl-TASK`, each on the images labelled for its task). The headroom is what
full labels bring the baseline (`mtl-full` over `mtl`); the share of it that a network closes is its own gain over `mtl`
divided by that.
Table, plot and `experiment.json` (every score of every seed, settings, commit, versions, machine) go to `--out`, and with
`--keep FOLDER` also there, under the recipe's name, small enough to be committed.
`--earlier FILE` takes the reference (STL) from such a file where none is trained here; networks that are in both are compared
(`again`): on another machine the same seed ends in other bits, and how far that leads is worth knowing.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from multidense.config import load_recipe
from multidense.files import read_json, write_json, write_text
from multidense.recipe import Recipe
from multidense.results import Results, delta_mtl, environment
from multidense.run import Run

CLAIMS = (
    ("both", "hitts", "discovery adds to its own teacher"),
    ("both", "naive-mtl", "HiTTs with discovery beats naive pseudo labels of MTL"),
    ("both", "naive-stl", "HiTTs with discovery beats naive pseudo labels of STL"),
    ("hitts", "mtl", "task tokens beat the plain multi-task network"),
    ("only-features", "hitts", "discovered features alone add to their teacher"),
    ("only-labels", "hitts", "discovered labels alone add to their teacher"),
)
"""(better, than, in words): what the method promises, and below that its two terms apart; judged on `delta_mtl` by seed."""


# Running ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """Train a network of a run, or (with a `teacher`) find what that teacher knows for it."""

    folder: Path
    network: str
    teacher: str | None = None

    @property
    def done(self) -> bool:
        """Whether a training is finished; what was found is looked after by the run."""
        return self.teacher is None and (self.folder / self.network / "results.json").exists()

    def __str__(self) -> str:
        return f"{self.folder.name} · {f'labels of {self.teacher} for ' if self.teacher else ''}{self.network}"

    def __call__(self) -> str:
        began, run = time.monotonic(), Run.open(self.folder)
        if self.teacher:
            run.find(self.teacher, self.network)
        else:
            run.train_network(self.network)
        return f"{time.monotonic() - began:.0f} s"


def plan(folders: Sequence[Path], recipe: Recipe, networks: Collection[str]) -> dict[Job, set[Job]]:
    """Every job that is not done, with those that come before it: one network over all seeds, then the next."""
    jobs: dict[Job, set[Job]] = {}
    for name in (name for stage in recipe.stages for name in stage if name in networks):
        for folder in folders:
            job = Job(folder, name)
            if job.done:
                continue
            jobs[job] = set()
            for teacher in recipe.networks[name].teachers:
                # Students with the recipe's own discovery share what is found, so only the first of them is waited for.
                own = recipe.networks[name].discovery is not None
                first = name if own else next(other.network for other in _sharing(recipe, jobs, folder, teacher))
                find = Job(folder, first, teacher)
                jobs[find] = {one for one in [Job(folder, teacher)] if one in jobs}
                jobs[job].add(find)
    return jobs


def _sharing(recipe: Recipe, jobs: Collection[Job], folder: Path, teacher: str) -> Iterator[Job]:
    """The trainings planned in a folder that share the recipe's discovery of a teacher."""
    for job in jobs:
        network = recipe.networks[job.network]
        if job.folder == folder and not job.teacher and teacher in network.teachers and network.discovery is None:
            yield job


def work_off(jobs: Mapping[Job, set[Job]], processes: int) -> list[Job]:
    """Do every job once those before it are done; one that fails stops only those that need it. Returns what failed."""
    waiting, done, failed = list(jobs), set(), []
    running: dict[Future, Job] = {}
    began = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            for job in [job for job in waiting if jobs[job] & set(failed)]:
                waiting.remove(job)
                failed.append(job)
            for job in [job for job in waiting if jobs[job] <= done][: processes - len(running)]:
                waiting.remove(job)
                running[pool.submit(job)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                problem = future.exception()
                if problem:
                    failed.append(job)
                else:
                    done.add(job)
                said = f"failed: {type(problem).__name__}: {problem}" if problem else future.result()
                left = (time.monotonic() - began) / max(1, len(done)) * (len(waiting) + len(running)) / 60
                print(f"{len(done)}/{len(jobs)} · {job}: {said} · about {left:.0f} min left", flush=True)
    return failed


# Telling ----------------------------------------------------------------------------------------------------------------


def gather(folders: Mapping[int, Path]) -> dict[int, dict[str, Results]]:
    """The finished networks by seed; the single-task ones together as `stl`."""
    found: dict[int, dict[str, Results]] = {}
    for seed, folder in folders.items():
        run = Run.open(folder)
        results = run.results()
        single = [f"stl-{task}" for task in run.recipe.tasks]
        if all(name in results for name in single):
            scores = {score: value for name in single for score, value in results[name].scores.items()}
            seconds = sum(results[name].cost["train_seconds"] for name in single)
            results["stl"] = Results(scores=scores, cost={"train_seconds": seconds})
        found[seed] = {name: result for name, result in results.items() if name not in single}
    return found


def join(found: dict[int, dict[str, Results]], earlier: Mapping) -> dict[str, dict]:
    """Give every seed of `found` the reference of an earlier experiment where it has none; returns, for each network that is in
    both, its scores here and there, means over the seeds they share.
    """
    again: dict[str, dict] = {}
    for name in dict.fromkeys(name for by_name in found.values() for name in by_name):
        shared = [seed for seed, by_name in found.items() if name in by_name and name in earlier["scores"].get(str(seed), {})]
        for score in found[shared[0]][name].scores if shared else ():
            here, there = (
                mean(values)
                for values in (
                    [found[seed][name].scores[score] for seed in shared],
                    [earlier["scores"][str(seed)][name][score] for seed in shared],
                )
            )
            again.setdefault(name, {})[score] = {"here": here, "earlier": there}
    for seed, by_name in found.items():
        scores = earlier["scores"].get(str(seed), {}).get("stl")
        if scores and "stl" not in by_name:
            commit = {"commit": " ".join(earlier["commits"]["stl"])}
            by_name["stl"] = Results(scores=scores, cost={"train_seconds": earlier["seconds"]["stl"]}, provenance=commit)
    return again


def gather_labels(folders: Mapping[int, Path]) -> dict:
    """How good discovered labels are (`quality`, by student and task) and scores on `training_images`, means over seeds."""
    quality: dict[tuple, list[float]] = {}
    training: dict[tuple, list[float]] = {}
    for folder in folders.values():
        run, seen = Run.open(folder), set()
        for name, network in run.recipe.networks.items():
            if not (folder / name / "results.json").exists():
                continue
            for teacher in network.teachers:
                place = run.discovered_folder(teacher, name) / "quality.json"
                if place in seen:  # students that share a discovery are told by the first of them
                    continue
                seen.add(place)
                for task, told in (read_json(place) if place.exists() else {}).items():
                    for key in ("coverage", "precision", "accuracy", "ece", "ece_by_share"):
                        if told[key] is not None:
                            quality.setdefault((name, task, key), []).append(told[key])
            place = folder / name / "training_images.json"
            for part, scores in (read_json(place) if place.exists() else {}).items():
                for score, value in scores.items():
                    if value is not None:
                        training.setdefault((name, part, score), []).append(value)
    return {"quality": _nested(quality), "training_images": _nested(training)}


def _nested(values: Mapping[tuple, Sequence[float]]) -> dict:
    told: dict = {}
    for (first, second, last), numbers in values.items():
        told.setdefault(first, {}).setdefault(second, {})[last] = mean(numbers)
    return told


def tell(found: Mapping[int, Mapping[str, Results]], titles: Mapping[str, str]) -> dict:
    """Everything the experiment says, as plain data: scores, gains over STL, share of the headroom, differences, claims."""
    gains = {
        name: {seed: delta_mtl(by[name], by["stl"]) for seed, by in found.items() if name in by and "stl" in by}
        for name in dict.fromkeys(name for by in found.values() for name in by)
    }
    gains = {name: by_seed for name, by_seed in gains.items() if by_seed}
    closed = {name: _closed(by_seed, gains) for name, by_seed in gains.items()}
    return {
        "scores": {str(seed): {name: dict(result.scores) for name, result in by.items()} for seed, by in found.items()},
        "seconds": {
            name: mean(by[name].cost["train_seconds"] for by in found.values() if name in by) for name in _names(found)
        },
        "titles": {name: titles.get(name, name) for name in _names(found)},
        "commits": {
            name: sorted({str(by[name].provenance.get("commit")) for by in found.values() if name in by})
            for name in _names(found)
        },
        "delta_mtl": {name: {str(seed): gain for seed, gain in by_seed.items()} for name, by_seed in gains.items()},
        "headroom_closed": closed,
        "over": {
            reference: {name: _paired(by_seed, gains[reference]) for name, by_seed in gains.items() if name != reference}
            for reference in ("mtl", "hitts")
            if reference in gains
        },
        "claims": [
            {"better": better, "than": than, "says": says} | _verdict(_paired(gains[better], gains[than]))
            for better, than, says in CLAIMS
            if better in gains and than in gains
        ],
    }


def _names(found: Mapping[int, Mapping[str, Results]]) -> list[str]:
    return list(dict.fromkeys(name for by in found.values() for name in by))


def _closed(gains: Mapping[int, float], all_gains: Mapping[str, Mapping[int, float]]) -> float | None:
    """Mean gain over `mtl` as a share of what full labels gain over it; None without a headroom."""
    if "mtl" not in all_gains or "mtl-full" not in all_gains:
        return None
    ours, headroom = (_paired(by_seed, all_gains["mtl"])["mean"] for by_seed in (gains, all_gains["mtl-full"]))
    return ours / headroom if ours is not None and headroom and headroom > 0 else None


def _paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict:
    """Differences seed by seed, their mean and its standard error (from two seeds on)."""
    each = {str(seed): ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    values = list(each.values())
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": mean(values) if values else None, "error": error, "seeds": each}


def _verdict(difference: Mapping) -> dict:
    """Shown where every seed agrees and the mean exceeds two standard errors; refuted where that holds of the contrary."""
    values, error = list(difference["seeds"].values()), difference["error"]
    sure = error is not None and len(values) > 2 and abs(difference["mean"]) > 2 * error
    if sure and min(values) > 0:
        verdict = "shown"
    elif sure and max(values) < 0:
        verdict = "refuted"
    else:
        verdict = "open"
    return dict(difference) | {"verdict": verdict}


def markdown(told: Mapping, name: str) -> str:
    """The tables of an experiment."""
    seeds = sorted(told["scores"], key=int)
    columns = list(next(iter(told["scores"][seeds[0]].values()), {})) if seeds else []
    columns = list(dict.fromkeys(score for by in told["scores"].values() for each in by.values() for score in each))
    lines = [f"# {name}", "", f"Seeds {', '.join(seeds)}. Mean ± sample deviation; `delta_mtl` in per cent over STL.", ""]
    head = ["network", "delta_mtl", "headroom closed", *columns, "seconds"]
    rows = []
    for key in sorted(told["delta_mtl"], key=lambda key: mean(told["delta_mtl"][key].values())):
        scores = [told["scores"][seed][key] for seed in seeds if key in told["scores"][seed]]
        closed = told["headroom_closed"][key]
        rows.append(
            [
                told["titles"][key],
                _spread(list(told["delta_mtl"][key].values()), 2, sign=True),
                "–" if closed is None else f"{100 * closed:.0f} %",
                *(_spread([one[column] for one in scores], 3 if "depth" in column else 2) for column in columns),
                f"{told['seconds'][key]:.0f}",
            ]
        )
    lines += _table(head, rows)
    for reference, differences in told["over"].items():
        head = [f"over {told['titles'][reference]}", "difference", "standard error", *(f"seed {seed}" for seed in seeds)]
        rows = [
            [
                told["titles"][key],
                f"{one['mean']:+.2f}",
                "–" if one["error"] is None else f"{one['error']:.2f}",
                *(f"{one['seeds'][seed]:+.2f}" if seed in one["seeds"] else "–" for seed in seeds),
            ]
            for key, one in differences.items()
            if one["mean"] is not None
        ]
        lines += ["", f"Points of `delta_mtl`, paired by seed, over {told['titles'][reference]}:", "", *_table(head, rows)]
    rows = [
        [
            f"{told['titles'][one['better']]} > {told['titles'][one['than']]}",
            one["says"],
            f"{one['mean']:+.2f}" + ("" if one["error"] is None else f" ± {one['error']:.2f}"),
            one["verdict"],
        ]
        for one in told["claims"]
    ]
    if rows:
        lines += ["", "Claims (difference ± standard error):", "", *_table(["claim", "in words", "points", "verdict"], rows)]
    rows = [
        [told["titles"].get(name, name), task, *(f"{100 * one[key]:.1f}" if key in one else "–" for key in _QUALITY)]
        for name, tasks in told["quality"].items()
        for task, one in tasks.items()
    ]
    if rows:
        lines += ["", "Discovered labels against the hidden truth, per cent, means over seeds:", ""]
        lines += _table(
            ["discovered for", "task", "kept", "precision of kept", "accuracy of all", "ECE", "ECE, equal shares"], rows
        )
    rows = [
        [told["titles"].get(name, name), part, *(f"{scores[one]:.4g}" if one in scores else "–" for one in columns)]
        for name, parts in told["training_images"].items()
        for part, scores in parts.items()
    ]
    if rows:
        lines += [
            "",
            "Scores on the training images, labelled and unlabelled for a task apart (Table 6), means over seeds:",
            "",
        ]
        lines += _table(["network", "images", *columns], rows)
    rows = [
        [told["titles"].get(name, name), score, f"{one['here']:.4g}", f"{one['earlier']:.4g}"]
        for name, scores in told.get("again", {}).items()
        for score, one in scores.items()
    ]
    if rows:
        lines += ["", "Trained on another machine before, with the same seeds and settings; means over seeds:", ""]
        lines += _table(["network", "score", "here", "earlier"], rows)
    return "\n".join(lines) + "\n"


_QUALITY = ("coverage", "precision", "accuracy", "ece", "ece_by_share")


def _spread(values: Sequence[float], decimals: int, sign: bool = False) -> str:
    middle = f"{mean(values):{'+' if sign else ''}.{decimals}f}"
    return f"{middle} ± {stdev(values):.{decimals}f}" if len(values) > 1 else middle


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def plot(told: Mapping, name: str, path: Path) -> None:
    """`delta_mtl` of every network: a dot a seed, a bar for the mean and its standard error."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": name, "font.size": 9, "svg.fonttype": "none"})
    order = sorted(told["delta_mtl"], key=lambda key: mean(told["delta_mtl"][key].values()))
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.28 * len(order)), layout="constrained")
    for row, key in enumerate(order):
        gains = list(told["delta_mtl"][key].values())
        error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0
        axes.errorbar(mean(gains), row, xerr=error, fmt="|", markersize=14, capsize=3, color="#20639b")
        axes.plot(gains, [row] * len(gains), "o", markersize=4, alpha=0.5, color="#e07a1f")
    axes.set_yticks(range(len(order)), [told["titles"][key] for key in order])
    axes.axvline(0, color="0.5", linewidth=0.8)
    axes.set_xlabel("delta_mtl over STL, % (dots: seeds; bar: mean ± standard error)")
    axes.set_title(name)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# The command ------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Train what is missing, then tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", help="only these and their teachers (default: all of the recipe)")
    parser.add_argument("--out", type=Path, help="folder of the runs and of what is told (default: runs/NAME)")
    parser.add_argument("--keep", type=Path, help="folder for NAME.json, NAME.md and NAME.svg, small enough to commit")
    parser.add_argument("--processes", type=int, default=2, help="networks that train side by side (default: 2)")
    parser.add_argument("--earlier", type=Path, help="a NAME.json that gives the reference where none is trained here")
    parser.add_argument("--as", dest="stem", help="what the kept files are called (default: the recipe's name)")
    parser.add_argument("--tell", action="store_true", help="train nothing, tell what is there")
    options, overrides = parser.parse_known_args()
    base = load_recipe(options.recipe, overrides)
    out = options.out or Path("runs") / base.name
    folders = {}
    for seed in options.seeds:
        recipe = load_recipe(options.recipe, [*overrides, "--seed", str(seed), "--labels.seed", str(seed)])
        folder = out / f"seed-{seed}"
        Run(recipe, folder)  # refuses a folder that holds other settings
        folders[seed] = folder
    failed = []
    if not options.tell:
        wanted = set(_with_teachers(base, options.networks or base.networks))
        failed = work_off(plan(list(folders.values()), base, wanted), options.processes)
    found, labels = gather(folders), gather_labels(folders)
    again = join(found, read_json(options.earlier)) if options.earlier else {}
    told = tell(found, {name: base.title(name) for name in base.networks} | {"stl": "STL"}) | labels | {"again": again}
    name = options.stem or base.name
    told |= {"name": name, "settings": _portable(base).to_yaml(), **environment()}
    for folder, stem in ((out, "experiment"), *([(options.keep, name)] if options.keep else [])):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{stem}.json", told)
        write_text(folder / f"{stem}.md", markdown(told, name))
        plot(told, name, folder / f"{stem}.svg")
    print(markdown(told, name))
    if failed:
        sys.exit(f"could not be done: {', '.join(map(str, failed))}")


def _portable(recipe: Recipe) -> Recipe:
    """The recipe without the places of one machine."""
    description = recipe.data.description and Path(recipe.data.description).name
    return replace(recipe, data=replace(recipe.data, description=description, root=None, cache=None))


def _with_teachers(recipe, networks: Sequence[str]) -> Iterator[str]:
    for name in networks:
        yield from _with_teachers(recipe, recipe.networks[name].teachers)
        yield name


if __name__ == "__main__":
    main()
