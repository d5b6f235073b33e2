"""The `multidense` command."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from multidense.command_words import one_of, parser_of
from multidense.version import __version__


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake of the user's is one clear message and exit status 1."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads and torch's would fight over the cores
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return
    if given[0] == "--version":
        print(f"multidense {__version__}")
        return
    from multidense.suggest import nearest
    from multidense.types import MultidenseError

    name = given[0]
    if name not in COMMANDS:
        sys.exit(_complaint(f"there is no command {name!r}{nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}"))
    warnings.formatwarning = lambda message, *where: f"multidense: note: {message}\n"
    try:
        COMMANDS[name](given[1:])
    except MultidenseError as error:
        sys.exit(_complaint(str(error)))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            return
        sys.exit(_complaint(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}"))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def run(arguments: list[str]) -> None:
    """train, discover, retrain, evaluate, report; skips what is done"""
    recipe, place = _recipe_and_folder("run", arguments)
    from multidense.progress import reporter
    from multidense.run import Run, markdown

    work = Run(recipe, place)
    page = work.run(reporter())
    print(markdown(work), end="")
    print(f"delta_mtl is against {recipe.title(recipe.baseline)}." if recipe.baseline else "", f"Report: {page}")


def train(arguments: list[str]) -> None:
    """train one network of a recipe, or of a run that was begun, and score it"""
    parser = parser_of(
        "train", train, "RECIPE is a recipe's name or file, or the folder of a run. Settings as for `multidense run`."
    )
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("--network", help="which of its networks (default: the only one)")
    parser.add_argument("--out", help="folder of the run (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on where a killed run stopped; that is what happens anyway")
    options, overrides = parser.parse_known_args(arguments)
    from multidense.progress import reporter
    from multidense.run import Run

    if (Path(options.recipe) / "recipe.yaml").exists():
        if overrides or options.out:
            parser.error("the folder of a run has its settings; to change some, begin another run from a recipe")
        work = Run.open(Path(options.recipe))
    else:
        from multidense.config import load_recipe, recipe_path

        recipe = load_recipe(recipe_path(options.recipe), overrides)
        work = Run(recipe, Path(options.out or f"runs/{recipe.name}"))
    network = one_of(options.network, list(work.recipe.networks), "network")
    print(work.train_network(network, reporter()))


def discover(arguments: list[str]) -> None:
    """write the labels that a trained network of a run finds for the images that lack them"""
    parser = parser_of("discover", discover, "Label maps, confidence maps and manifest.json go to RUN/discovered, or to --out.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--network", help="which of its networks (default: the recipe's teacher, or the only one)")
    parser.add_argument("--out", help="another folder")
    parser.add_argument("--threshold", nargs="+", metavar="RULE", help="'share 0.6' for all tasks, or TASK='fixed 0.9' …")
    options = parser.parse_args(arguments)
    from multidense.progress import reporter
    from multidense.run import Run

    work = Run.open(Path(options.run))
    teachers = work.teachers if len(work.teachers) == 1 and not options.network else list(work.recipe.networks)
    network = one_of(options.network, teachers, "network")
    rules = [rule.partition("=") for rule in options.threshold or ()]
    overrides = (
        {"threshold": {name if found else "default": rule if found else name for name, found, rule in rules}} if rules else {}
    )
    if options.out:  # whoever names a folder wants files in it
        overrides["mode"] = "offline"
    found = work.discover(network, reporter(), out=Path(options.out) if options.out else None, **overrides)
    for name, entry in found.manifest["tasks"].items():
        level = entry["threshold"]
        levels = (min(level), max(level)) if isinstance(level, list) else (level,)  # "balanced" has one for each category
        print(
            f"{name}: {entry['images']} images, kept {100 * entry['kept_share']:.1f} % of their pixels "
            f"({entry['rule']}, confidence above {' … '.join(f'{level:.3f}' for level in levels)})"
        )
        for collection, shares in (entry.get("collections") or {}).items():
            print(f"  on {collection}: {shares['images']} images, kept {100 * shares['kept_share']:.1f} % of their pixels")
    print(found.folder)


def evaluate(arguments: list[str]) -> None:
    """score the finished networks of a run on its validation split"""
    parser = parser_of("evaluate", evaluate)
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--network", help="only this one")
    options = parser.parse_args(arguments)
    from multidense.progress import reporter
    from multidense.run import Run, markdown

    work = Run.open(Path(options.run))
    done = [name for name in work.recipe.networks if (work.folder / name / "model").exists()]
    for name in [options.network] if options.network else done:
        work.evaluate(name, reporter=reporter()).save(work.folder / name / "results.json")
    print(markdown(work), end="")


def predict(arguments: list[str]) -> None:
    """all tasks for your own images: value files, pictures, confidences"""
    parser = parser_of("predict", predict)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--model", required=True, help="folder of a finished network (RUN/NETWORK/model), or RUN/NETWORK")
    parser.add_argument("--out", required=True, help="folder for the predictions")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="size to predict at (default: the training's)"
    )
    options = parser.parse_args(arguments)
    from multidense.predict import predict_files

    for line in predict_files(
        options.images, Path(options.model), Path(options.out), tuple(options.size) if options.size else None
    ):
        print(line)


def report(arguments: list[str]) -> None:
    """one HTML page (and Markdown) about one run or several"""
    parser = parser_of("report", report)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--out", help="the page (default: RUN/report.html)")
    parser.add_argument("--tokens", action="store_true", help="look at what the task tokens of the networks say")
    parser.add_argument("--mixed", action="store_true", help="also runs that were not scored alike; what differs is told")
    options = parser.parse_args(arguments)
    from multidense.progress import reporter
    from multidense.report import write_report
    from multidense.run import Run

    for folder in options.runs:
        work = Run.open(Path(folder))
        work.index()
        if options.tokens:
            work.look_at_tokens(reporter())
    print(write_report([Path(folder) for folder in options.runs], Path(options.out) if options.out else None, options.mixed))


def table(arguments: list[str]) -> None:
    """a table of the HiTTs paper with your runs below its rows"""
    parser = parser_of("table", table)
    parser.add_argument("number", type=int, metavar="N", help="1 to 9")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of runs; without any, the published numbers alone")
    parser.add_argument("--mixed", action="store_true", help="also runs that were not scored alike; what differs is marked")
    parser.add_argument("--rules", action="store_true", help="also what other checkpoint rules than the last epoch would tell")
    options = parser.parse_args(arguments)
    from multidense.paper_table import table as told

    print(told(options.number, [Path(run) for run in options.runs], mixed=options.mixed, rules=options.rules), end="")


def compare(arguments: list[str]) -> None:
    """train several methods with several seeds: one table of scores, gains and costs"""
    from multidense.compare_command import main as command

    command(arguments)


def score(arguments: list[str]) -> None:
    """score files made by anyone: predictions against truth"""
    from multidense.scoring_command import score as command

    command(arguments)


def data(arguments: list[str]) -> None:
    """check: find what is wrong with files; show: look at them; label: say who is labelled; convert: a faster copy"""
    from multidense.data_command import data as command

    command(arguments)


def recipes(arguments: list[str]) -> None:
    """the recipes that come with the package"""
    parser = parser_of("recipes", recipes)
    parser.add_argument("name", nargs="?", help="print this one, with every setting it stands for")
    options = parser.parse_args(arguments)
    from multidense.config import load_recipe, recipe_path, shipped

    if options.name:
        print(load_recipe(recipe_path(options.name)).to_yaml(), end="")
        return
    width = max(map(len, shipped())) + 2
    for name, path in shipped().items():
        recipe = load_recipe(path)
        first = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        print(f"{name:<{width}}{first}" + (f" · about {recipe.gpu_hours:g} GPU hours" if recipe.gpu_hours else ""))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "run": run,
    "train": train,
    "discover": discover,
    "evaluate": evaluate,
    "predict": predict,
    "report": report,
    "compare": compare,
    "table": table,
    "score": score,
    "data": data,
    "recipes": recipes,
}


def _overview() -> str:
    lines = "\n".join(f"  {name:<10}{command.__doc__}" for name, command in COMMANDS.items())
    return (
        "usage: multidense COMMAND …\n\n"
        "One network for many dense prediction tasks, from partly labelled images.\n\n"
        f"{lines}\n\n`multidense COMMAND --help` says more. Begin with: multidense run rooms"
    )


def _recipe_and_folder(command: str, arguments: list[str]):
    """The recipe with its overrides, and the folder to run it in."""
    from multidense.config import load_recipe, recipe_path, settings_help
    from multidense.types import MultidenseError

    parser = parser_of(
        command, COMMANDS[command], "Any setting of the recipe can be given, for instance --training.epochs 20.", False
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe's name (see `multidense recipes`) or file")
    parser.add_argument("--root", help="where the data lies; short for --data.root")
    parser.add_argument("--out", help="folder of the run (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on where a killed run stopped; that is what happens anyway")
    parser.add_argument("-h", "--help", action="store_true", help="show this, and all settings")
    options, overrides = parser.parse_known_args(arguments)
    if options.help or options.recipe is None:
        parser.print_help()
        print("\nsettings:\n" + settings_help())
        sys.exit(0 if options.help else 2)
    if arguments[0].startswith("--") and options.recipe not in arguments[:1] and overrides:
        raise MultidenseError(
            f"the recipe comes first, its settings after it: multidense {command} RECIPE --some.setting VALUE …"
        )
    overrides += ["--data.root", options.root] if options.root else []
    recipe = load_recipe(recipe_path(options.recipe), overrides)
    return recipe, Path(options.out or f"runs/{recipe.name}")


def _complaint(message: str) -> str:
    return f"multidense: {message}"
