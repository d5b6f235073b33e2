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
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from multidense.comparison import seed_runs, together
from multidense.comparison_table import gains_over, markdown_table, paired, standard_error
from multidense.config import load_recipe
from multidense.files import read_json, write_json, write_text
from multidense.jobs import places, plan, with_teachers, work_off
from multidense.results import Results, environment
from multidense.run import Run, do
from multidense.tables import spread

CLAIMS = (
    ("both", "hitts", "discovery adds to its own teacher"),
    ("both", "naive-mtl", "HiTTs with discovery beats naive pseudo labels of MTL"),
    ("both", "naive-stl", "HiTTs with discovery beats naive pseudo labels of STL"),
    ("hitts", "mtl", "task tokens beat the plain multi-task network"),
    ("only-features", "hitts", "discovered features alone add to their teacher"),
    ("only-labels", "hitts", "discovered labels alone add to their teacher"),
)
"""(better, than, in words): what the method promises, and below that its two terms apart; judged on `delta_mtl` by seed."""


# Telling ----------------------------------------------------------------------------------------------------------------


def gather(runs: Mapping[int, Run]) -> dict[int, dict[str, Results]]:
    """The finished networks by seed; the single-task ones together as `stl`."""
    found: dict[int, dict[str, Results]] = {}
    for seed, run in runs.items():
        results = run.results()
        single = [f"stl-{task}" for task in run.recipe.tasks]
        if all(name in results for name in single):
            results["stl"] = together([results[name] for name in single])
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


def gather_labels(runs: Mapping[int, Run]) -> dict:
    """How good discovered labels are (`quality`, by student and task) and scores on `training_images`, means over seeds."""
    quality: dict[tuple, list[float]] = {}
    training: dict[tuple, list[float]] = {}
    for run in runs.values():
        seen: set[Path] = set()
        for name, network in run.recipe.networks.items():
            if not (run.folder / name / "results.json").exists():
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
            place = run.folder / name / "training_images.json"
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
    scores = {name: {seed: by[name].scores for seed, by in found.items() if name in by} for name in _names(found)}
    gains = gains_over(scores, "stl")
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
            reference: {name: paired(by_seed, gains[reference]) for name, by_seed in gains.items() if name != reference}
            for reference in ("mtl", "hitts")
            if reference in gains
        },
        "claims": [
            {"better": better, "than": than, "says": says} | _verdict(paired(gains[better], gains[than]))
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
    ours, headroom = (paired(by_seed, all_gains["mtl"])["mean"] for by_seed in (gains, all_gains["mtl-full"]))
    return ours / headroom if ours is not None and headroom and headroom > 0 else None


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
                spread(list(told["delta_mtl"][key].values()), "{:+.2f}".format),
                "–" if closed is None else f"{100 * closed:.0f} %",
                *(
                    spread([one[column] for one in scores], ("{:.3f}" if "depth" in column else "{:.2f}").format)
                    for column in columns
                ),
                f"{told['seconds'][key]:.0f}",
            ]
        )
    lines += markdown_table(head, rows)
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
        lines += [
            "",
            f"Points of `delta_mtl`, paired by seed, over {told['titles'][reference]}:",
            "",
            *markdown_table(head, rows),
        ]
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
        lines += [
            "",
            "Claims (difference ± standard error):",
            "",
            *markdown_table(["claim", "in words", "points", "verdict"], rows),
        ]
    rows = [
        [told["titles"].get(name, name), task, *(f"{100 * one[key]:.1f}" if key in one else "–" for key in _QUALITY)]
        for name, tasks in told["quality"].items()
        for task, one in tasks.items()
    ]
    if rows:
        lines += ["", "Discovered labels against the hidden truth, per cent, means over seeds:", ""]
        lines += markdown_table(
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
        lines += markdown_table(["network", "images", *columns], rows)
    rows = [
        [told["titles"].get(name, name), score, f"{one['here']:.4g}", f"{one['earlier']:.4g}"]
        for name, scores in told.get("again", {}).items()
        for score, one in scores.items()
    ]
    if rows:
        lines += ["", "Trained on another machine before, with the same seeds and settings; means over seeds:", ""]
        lines += markdown_table(["network", "score", "here", "earlier"], rows)
    return "\n".join(lines) + "\n"


_QUALITY = ("coverage", "precision", "accuracy", "ece", "ece_by_share")


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
        axes.errorbar(mean(gains), row, xerr=standard_error(gains) or 0, fmt="|", markersize=14, capsize=3, color="#20639b")
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
    runs, failed = seed_runs(base, options.seeds, out), {}
    if not options.tell:
        wanted = with_teachers(base, options.networks or base.networks)
        failed = work_off(plan([run.folder for run in runs.values()], base, wanted), places(base, options.processes), do)
    found, labels = gather(runs), gather_labels(runs)
    again = join(found, read_json(options.earlier)) if options.earlier else {}
    told = tell(found, {name: base.title(name) for name in base.networks} | {"stl": "STL"}) | labels | {"again": again}
    name = options.stem or base.name
    told |= {"name": name, "settings": base.without_places().to_yaml(), **environment()}
    for folder, stem in ((out, "experiment"), *([(options.keep, name)] if options.keep else [])):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{stem}.json", told)
        write_text(folder / f"{stem}.md", markdown(told, name))
        plot(told, name, folder / f"{stem}.svg")
    print(markdown(told, name))
    if failed:
        sys.exit("could not be done: " + "; ".join(f"{job} ({why})" for job, why in failed.items()))


if __name__ == "__main__":
    main()
