"""What every method costs, in one table: parameters, multiply–adds, time of a training step and memory, beside published ones.

    python benchmarks/method_cost.py [--size 64 96] [--width 1] [--batch 3] [--rounds 8] [--row mtl ...] [--out FOLDER]
    python benchmarks/method_cost.py --systems ...      HiTTs on scales, MT-CP, CCR and all of it together, on ResNet-18

A step is one of `train_loop` itself: forwards, objective, regularisers, the balancer's backward, the optimiser; only making the
batch is left out. Each network trains in a process of its own on rooms in memory. The methods take turns, a step each, so that
what else the machine does falls on all of them: where the ratios of the fastest and of the median steps differ, it was busy.
Those that do not fit into memory together are measured in groups, each with MTL in it.

parameters      of the network at full width; in training only: those of regularisers and balancer
multiply-adds   of the network at full width for one image of 288×384, by the rule of the paper's Table 8: no attention
seconds         CPU time of one thread for a step, after some to warm up; × is the time over MTL's in the same turns
peak            highest resident memory during steps, above the process before its model was built
kept            bytes that are kept for the backward pass, every storage once, weights and images apart: free of noise

A method is a line of `ROWS`, or of `SYSTEMS`; `--decoder` (and `--backbone`) add one for a network of other parts, trained as
MTL is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from multidense import train
from multidense.comparison import catalogue, choose
from multidense.data import Augment, Reader, Rooms, Wrapped, collate
from multidense.feed import Feed
from multidense.files import write_json, write_text
from multidense.models import MultiTask, build_model
from multidense.models.cost import count_parameters, multiply_adds
from multidense.ops import pool
from multidense.progress import Reporter, silent
from multidense.published import tables
from multidense.recipe import Network, Recipe
from multidense.regularizers import REGULARIZERS
from multidense.results import environment
from multidense.spawned import fabric_for, launched
from multidense.train import Training, fit_codebooks, train_loop
from multidense.types import FeatureTarget, MultidenseError, Sample, Target
from step_cost import MEBI, reset_peak, resident

PAPER_SIZE = (288, 384)
REGRESSED = {"semseg": {"classes": 13}, "depth": {}, "normals": {}}
CLASSIFIED = {"semseg": {"classes": 13}, "depth": {"bins": 30}, "normals": {"centers": 20}}
WARM_UP = 3
STRIDE = 4  # of discovered features, as discovery stores them
KEPT_SHARE = 0.6  # of discovered pixels
QUICK = {"x-task": {"epochs": 1}}
"""Settings for what is fitted before a training: a step costs the same however well it was."""


@dataclass(frozen=True)
class Row:
    """A line of the table: a method of the catalogue, and in what its network differs.

    Args:
        method: its name in the catalogue.
        name: of the line; left out, the method's.
        title: in the table; left out, the method's.
        backbone: of its network.
        decoder: of its network; left out, the method's.
        options: settings of both.
        classified: whether depth and normals are classified, by codebooks.
        full_labels: whether every image has all labels, whatever the table's label setting is.
    """

    method: str
    name: str = ""
    title: str = ""
    backbone: str = "segnet"
    decoder: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    classified: bool = False
    full_labels: bool = False

    @property
    def key(self) -> str:
        return self.name or self.method


ROWS = (
    Row("mtl"),  # the first is what the others are compared with
    Row("stl"),
    Row("mtan"),
    Row("mtl", "mtl-codebooks", "MTL, codebooks", classified=True),
    Row("hitts", classified=True),
    Row("hitts", "hitts-lean", "HiTTs, lean", options={"lean": True}, classified=True),
    Row("hitts+lp+lf", classified=True),
    Row("uncertainty"),
    Row("dwa"),
    Row("gradnorm"),
    Row("mgda"),
    Row("pcgrad"),
    Row("upgrad"),
    Row("log-sum"),
    Row("lps"),
    Row("xtc"),
    Row("xtc+uncertainty"),
    Row("x-task", full_labels=True),
    Row("ssl"),
    Row("ccr"),
)

SYSTEMS = (
    Row("mtl", "mtl", "MTL", "resnet18", "aspp", classified=True),
    Row("hitts", "hitts-single", "HiTTs, one scale", "resnet18", "hitts-ms", {"multi_scale": False}, classified=True),
    *(
        Row(method, f"{method}, scales", f"{title}, four scales", "resnet18", "hitts-ms", classified=True)
        for method, title in (
            ("hitts", "HiTTs"),
            ("hitts+ccr", "HiTTs + CCR"),
            ("hitts+lps", "HiTTs + LPS"),
            ("hitts+lp+lf", "HiTTs + L_p + L_f"),
            ("hitts+lp+lf+ccr", "HiTTs + L_p + L_f + CCR"),
        )
    ),
    Row("ccr", "mtl+ccr", "MTL + CCR", "resnet18", "aspp", classified=True),
    Row("mtcp", backbone="resnet18", classified=True),
    Row("mtcp+lps", backbone="resnet18", classified=True),
    Row("mtcp+lps+lp", backbone="resnet18", classified=True),
)


def networks_of(row: Row) -> tuple[Recipe, dict[str, Network]]:
    """The recipe of a row and the networks that make it, by name; what there is not is a `MultidenseError`."""
    recipe = Recipe("cost", tasks=CLASSIFIED if row.classified else REGRESSED, networks={})
    recipe, chosen = choose(recipe, [row.method])
    names = next(method.networks for method in chosen if method.name == row.method)
    found = {name: recipe.networks[name] for name in names}
    changed = {"decoder": row.decoder} if row.decoder else {}
    return replace(recipe, backbone=row.backbone), {
        name: replace(network, options=dict(network.options) | dict(row.options), **changed) for name, network in found.items()
    }


def counted(row: Row) -> dict[str, float]:
    """Parameters and multiply–adds of a row's networks together, at full width."""
    recipe, networks = networks_of(row)
    found = {"parameters": 0, "parameters_in_training_only": 0, "multiply_adds": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in networks.items():
            model = build_model(row.backbone, network.decoder, recipe.task_objects(name), seed=0, **network.options)
            beside = train._beside(model, prepared(recipe.training_of(network), model, Path(folder)))
            found["parameters"] += count_parameters(model)
            found["parameters_in_training_only"] += count_parameters(beside)
            found["multiply_adds"] += multiply_adds(model, PAPER_SIZE)
    return found


def prepared(settings: Training, model: MultiTask, folder: Path) -> Training:
    """The settings with what regularisers fit before a training, here on one small image."""
    small = Rooms(model.tasks, "train", size=(32, 48), length=1)
    told = {"seed": 0, "data": {}, "reporter": silent}
    made = {
        name: REGULARIZERS[name].prepared(
            dict(given or {}) | QUICK.get(name, {}), model.tasks, lambda _: [collate([small[0]], model.tasks)], folder, **told
        )
        for name, given in settings.regularizers.items()
    }
    return replace(settings, regularizers=made)


# One network, in a process of its own ----------------------------------------------------------------------------------


class Kept(Wrapped):
    """Images in memory, each labelled for the tasks of its turn; `found` puts beside them what is discovered."""

    def __init__(self, reader: Reader, labelled: Sequence[frozenset[str]]):
        super().__init__(reader)
        self.labelled = labelled
        self.samples = [reader.load(index, tasks) for index, tasks in enumerate(labelled)]

    def annotated(self, index: int) -> frozenset[str]:
        return self.labelled[index]

    def load(self, index: int, tasks: Sequence[str]) -> Sample:
        return self.samples[index]


def discovered_at_random(model: MultiTask, sample: Sample, seed: int) -> Sample:
    """The sample with maps and features of the model's tasks as offline discovery would bring them, made by chance alone."""
    generator = torch.Generator().manual_seed(seed)
    size = tuple(sample.image.shape[-2:])
    discovered = {}
    for task in (task for task in model.tasks if task.name not in sample.targets):
        logits = torch.randn(1, task.channels, *size, generator=generator)
        valid = torch.rand(1, *size, generator=generator) < KEPT_SHARE
        discovered[task.name] = Target(task.harden(task.decode(logits))[0], valid)
    with torch.no_grad():
        seen = {name: pool(maps, STRIDE)[0] for name, maps in model(sample.image[None]).features.items()}
    features = {
        name: FeatureTarget(
            torch.randn(maps.shape, generator=generator), torch.rand(1, *maps.shape[-2:], generator=generator), STRIDE
        )
        for name, maps in seen.items()
    }
    return replace(sample, discovered=discovered, features=features)


class Pace(Reporter):
    """Holds a training back: after some steps to warm up, each waits for a line from the one who asked, and tells what it took.

    In the second step it sees what is kept for the backward pass.
    """

    def __init__(self, needs: Callable[[], dict[str, float]], own: Callable[[], set[int]]):
        self.needs, self.own, self.steps, self.began, self.kept = needs, own, 0, 0.0, 0

    @contextmanager
    def work(self, title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        yield self._advance

    def _advance(self, steps: int = 1, note: str = "") -> None:
        seconds = time.process_time() - self.began
        self.steps += 1
        if self.steps > WARM_UP:
            print(seconds, flush=True)
        elif self.steps == WARM_UP:
            print(json.dumps(self.needs() | {"kept": self.kept / MEBI}), flush=True)

    def feed(self, *settings: Any) -> Feed:
        """A feed whose batches come when the next step may begin."""
        pace, made = self, Feed(*settings)
        batches = made.batches

        def paced(*arguments: Any, **words: Any) -> Iterator:
            for views, share in batches(*arguments, **words):
                if pace.steps >= WARM_UP and not sys.stdin.readline():
                    sys.exit()
                with pace._watching([batch.image for batch in views]) if pace.steps == 1 else nullcontext():
                    pace.began = time.process_time()
                    yield views, share

        made.batches = paced
        return made

    @contextmanager
    def _watching(self, images: Sequence[torch.Tensor]) -> Iterator[None]:
        known = self.own() | {image.untyped_storage().data_ptr() for image in images}
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        self.kept = sum(seen.values())


def serve(row: Row, name: str, options: argparse.Namespace) -> None:
    """Train a row's network; say what it needs, then the seconds of one more step for every line read."""
    torch.set_num_threads(1)
    recipe, networks = networks_of(row)
    network, tasks = networks[name], recipe.task_objects(name)
    every = frozenset(task.name for task in tasks)
    alone = [frozenset({task.name}) for task in tasks]
    full = row.full_labels or options.labels == "full"
    labelled = [every if full else alone[index % len(alone)] for index in range(options.batch)]
    data = Kept(Rooms(tasks, "train", size=tuple(options.size), length=options.batch, seed=options.seed), labelled)
    idle = resident()
    model = build_model(row.backbone, network.decoder, tasks, options.width, seed=options.seed, **network.options)
    fit_codebooks(model, data, (), options.seed)
    if network.teachers:
        data.samples = [discovered_at_random(model, sample, index) for index, sample in enumerate(data.samples)]
    made: list[torch.nn.Module] = [model]
    make_beside = train._beside

    def beside(*arguments: Any) -> torch.nn.ModuleDict:
        made.append(make_beside(*arguments))
        return made[-1]

    def own() -> set[int]:
        tensors = [tensor for module in made for tensor in (*module.parameters(), *module.buffers())]
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    pace = Pace(lambda: {"peak": (resident("VmHWM") - idle) / MEBI}, own)
    train._beside, train.Feed = beside, pace.feed
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(
            prepared(recipe.training_of(network), model, Path(folder)),
            epochs=10**9,  # it ends when nobody asks for another step
            batch_size=options.batch,
            lr=1e-4,
            schedule="constant",
            augment=Augment.none(),
            threads=1,
            accelerator="cpu",
        )
        job = {"model": model, "data": data, "discovered": (), "folder": None, "weights": Path(folder) / "weights"}
        loop = partial(train_loop, **job, seed=options.seed, val=None, settings=settings, reporter=pace)
        reset_peak()
        launched(fabric_for("cpu", 1, "32-true"), loop, Path(folder))


# All of them -------------------------------------------------------------------------------------------------------------


class Serving:
    """A row whose networks train in processes of their own, and what was measured of it."""

    def __init__(self, row: Row, options: argparse.Namespace):
        self.row, self.seconds, self.failed = row, [], ""
        self.processes: list[subprocess.Popen] = []
        self.needs: list[dict[str, float]] = []
        settings = ["--size", *options.size, "--width", options.width, "--batch", options.batch, "--labels", options.labels]
        for name in networks_of(row)[1]:
            asked = json.dumps({"row": asdict(row), "network": name})
            command = [sys.executable, __file__, *map(str, settings), "--seed", str(options.seed), "--serve", asked]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(command, **pipes, env=environment))
            self.needs.append(self._heard(self.processes[-1]) or {})

    def step(self) -> None:
        """One more step of each of its networks."""
        if self.failed:
            return
        took = []
        for process in self.processes:
            try:
                process.stdin.write("\n")
                process.stdin.flush()
            except OSError:
                pass  # what it says, or does not say, tells that it is gone
            took.append(self._heard(process))
        if not self.failed:
            self.seconds.append(sum(took))

    def _heard(self, process: subprocess.Popen) -> Any:
        """What a process says next; None where it has ended."""
        said = process.stdout.readline()
        if said:
            return json.loads(said)
        self.failed = f"its process ended with status {process.wait()}"
        return None

    def close(self) -> None:
        for process in self.processes:
            try:
                process.communicate()
            except OSError:
                process.wait()

    def figures(self, reference: Sequence[float]) -> dict[str, Any]:
        """What was measured; `reference` are the seconds of the first row's steps in the same turns."""
        if self.failed:
            return {"failed": self.failed}
        peak, kept = (max(needs[name] for needs in self.needs) for name in ("peak", "kept"))
        return {"peak": peak, "kept": kept, "seconds": self.seconds, "seconds_of_first": list(reference)}


def measure(rows: Sequence[Row], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What every row costs, by name. The first is in every group."""
    told = {row.key: described(row) for row in rows}
    first, *others = (row for row in rows if row is rows[0] or "failed" not in told[row.key])
    each = max(1, options.together - 1)
    groups = [others[begin : begin + each] for begin in range(0, len(others), each)] or [()]
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        serving = []
        try:
            for row in (first, *group):
                serving.append(Serving(row, options))
            for _ in range(options.rounds):
                for one in serving:
                    one.step()
        finally:
            for one in serving:
                one.close()
        for one in serving:
            found.setdefault(one.row.key, one.figures(serving[0].seconds))
        print(f"{len(found)} of {len(others) + 1} measured: {', '.join(found)}", file=sys.stderr, flush=True)
    return {key: about | found.get(key, {}) for key, about in told.items()}


def described(row: Row) -> dict[str, Any]:
    """What a row is, what it counts, and what was published of it."""
    method = catalogue().get(row.method)
    told: dict[str, Any] = {"title": row.title or (method.title if method else row.key), "row": asdict(row)}
    try:
        told["networks"] = sorted({f"{row.backbone} + {network.decoder}" for network in networks_of(row)[1].values()})
        told |= counted(row)
    except MultidenseError as error:
        return told | {"failed": str(error)}
    own = not (row.name or row.decoder or row.options) and row.backbone == "segnet"
    published = [rows[method.row] for rows in tables()[8].rows.values() if own and method.row in rows]
    return told | {"published": dict(published[0]) if published else {}}


def markdown(told: Mapping[str, Any]) -> str:
    """The table, with what its columns mean."""
    settings, rows = told["settings"], told["methods"]
    first = next(iter(rows.values()))["title"]
    head = ["method", "network", "parameters, M", "in training only, M", "multiply–adds, G", "step, s: fastest", f"× {first}"]
    head += ["step, s: median", f"× {first}", "peak, MiB", "kept, MiB", "published: M", "published: G", "published: GB"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    failed = []
    for row in rows.values():
        if "failed" in row:
            failed.append(f"Not measured: {row['title']}, for {row['failed'].rstrip('.')}.")
        cells = [row["title"], ", ".join(row.get("networks", []))]
        for name, unit in (("parameters", 1e6), ("parameters_in_training_only", 1e6), ("multiply_adds", 1e9)):
            cells.append(f"{row[name] / unit:.2f}" if name in row else "–")
        for over in (min, median):
            times = (over(row["seconds"]), over(row["seconds_of_first"])) if row.get("seconds") else ()
            cells += [f"{times[0]:.3f}", f"{times[0] / times[1]:.2f}"] if times else ["–", "–"]
        cells += [f"{row[name]:.0f}" if name in row else "–" for name in ("peak", "kept")]
        cells += [f"{row.get('published', {}).get(name, '–')}" for name in ("params_M", "flops_G", "train_memory_G")]
        lines.append(cells)
    height, width = settings["size"]
    machine = told["environment"]["machine"]
    pieces = [
        "# What every method costs",
        f"Steps of {settings['batch']} images of {height}×{width} at width {settings['width']:g}, {settings['rounds']} of them "
        f"timed, labels: {settings['labels']}; CPU time of one thread of {machine['processor']}. Parameters and multiply–adds "
        "are of full width and 288×384. STL's networks are added up, and of their memories the highest counts.",
        "\n".join(f"| {' | '.join(cells)} |" for cells in lines),
        "In training only: parameters of regularisers and balancer, which no saved model has; the published XTC counts its "
        "mapping network in. Peak: highest resident memory above the process without a model. Kept: what the forward pass "
        "leaves for the backward pass. Published: the HiTTs paper's Table 8 (arXiv 2411.18823), on a GPU.",
        *failed,
    ]
    return "\n\n".join(pieces) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """All methods, to `method-cost.json` and `method-cost.md`, or the systems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[64, 96], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--width", type=float, default=1.0, help="of the backbone, for time and memory")
    parser.add_argument("--batch", type=int, default=3, help="images a step; with 3 every task is labelled in each (default)")
    parser.add_argument("--labels", choices=["one-label", "full"], default="one-label", help="what each image is labelled for")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each method that are timed")
    parser.add_argument("--seed", type=int, default=0, help="of rooms, weights and order")
    parser.add_argument("--systems", action="store_true", help="what is built on pyramids, to systems-cost.json and .md")
    parser.add_argument("--row", nargs="+", help=f"only these, and {ROWS[0].key}: {', '.join(row.key for row in ROWS)}")
    parser.add_argument("--decoder", nargs="+", default=[], help="further rows: MTL with these decoders")
    parser.add_argument("--backbone", default="segnet", help="of further rows")
    parser.add_argument("--classified", action="store_true", help="whether further rows classify depth and normals")
    parser.add_argument("--together", type=int, default=8, help="methods in memory at once")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"), help="a folder")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.serve:
        asked = json.loads(options.serve)
        serve(Row(**asked["row"]), asked["network"], options)
        return
    rows, name = (SYSTEMS, "systems-cost") if options.systems else (ROWS, "method-cost")
    unknown = sorted(set(options.row or ()) - {row.key for row in rows})
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(row.key for row in rows)}")
    chosen = [row for row in rows if options.row is None or row.key in options.row or row is rows[0]]
    for decoder in options.decoder:
        key, title = f"{options.backbone}+{decoder}", f"{decoder} on {options.backbone}"
        chosen.append(Row("mtl", key, title, options.backbone, decoder, classified=options.classified))
    settings = {each: getattr(options, each) for each in ("size", "width", "batch", "labels", "rounds", "seed", "together")}
    told = {"settings": settings, "methods": measure(chosen, options), "environment": environment()}
    write_json(options.out / f"{name}.json", told)
    write_text(options.out / f"{name}.md", markdown(told))
    print(markdown(told))


if __name__ == "__main__":
    main()
