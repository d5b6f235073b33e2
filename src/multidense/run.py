"""A run: stage 1, discovery, stage 2, evaluation and report, from a recipe into one folder. What is done already is skipped.

RUN/recipe.yaml            every setting          RUN/NETWORK/model/          the finished network
RUN/assignment.csv         who is labelled        RUN/NETWORK/results.json    its scores on the validation split
RUN/discovered/            labels, confidences    RUN/report.html, report.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch

from multidense import evaluation
from multidense.checkpoint import differences
from multidense.config import load_recipe
from multidense.data import Folder, Reader, Rooms, partial
from multidense.data.subset import Subset, Tasks, evenly
from multidense.discovery import discover, judge
from multidense.files import read_json, write_json
from multidense.models.multitask import MultiTask, build_model, load_model
from multidense.progress import Reporter, bars, silent
from multidense.recipe import Recipe
from multidense.report import write_report
from multidense.results import Results, delta_mtl
from multidense.store import Discovered
from multidense.train import fit
from multidense.types import MultidenseError


class Run:
    """One recipe in one folder.

    `Run(recipe, folder)` makes the folder, or goes on in it where it holds the same recipe; `Run.open(folder)` takes the recipe
    from it.
    """

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, Path(folder)
        kept = self.folder / "recipe.yaml"
        if kept.exists() and (any(self.folder.glob("*/model")) or any(self.folder.glob("*/checkpoint.pt"))):
            _same(asdict(load_recipe(kept)), asdict(recipe), self.folder)
        elif not kept.exists() or kept.read_text(encoding="utf-8") != recipe.to_yaml():
            if kept.exists():  # nothing was trained with the old one yet, and its assignment must not outlive it
                (self.folder / "assignment.csv").unlink(missing_ok=True)
            recipe.save(kept)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run that a folder holds."""
        if not (Path(folder) / "recipe.yaml").exists():
            raise MultidenseError(
                f"{folder} holds no run: there is no recipe.yaml in it; make one with `multidense run RECIPE`"
            )
        return cls(load_recipe(Path(folder) / "recipe.yaml"), folder)

    # Data -------------------------------------------------------------------------------------------------------------

    @cached_property
    def everything(self) -> Reader:
        """The training split with all its labels: for assignments and for pictures, never for training."""
        return reader_of(self.recipe, "train")

    @cached_property
    def val(self) -> Reader:
        """The validation split."""
        return reader_of(self.recipe, "val")

    @cached_property
    def train(self) -> Reader:
        """The training split with the labels that may be used."""
        reader, labels, kept = self.everything, self.recipe.labels, self.folder / "assignment.csv"
        if not kept.exists():
            if labels.file:
                chosen = partial.from_csv(reader, labels.file)
            else:
                chosen = partial.by_setting(reader, labels.setting, labels.seed, labels.task, labels.k)
            chosen.assignment.to_csv(kept)
        chosen = partial.from_csv(reader, kept)
        counts, full = chosen.assignment.counts(), partial.full(reader).assignment.counts()
        for task in (task for task, count in full.items() if not count):
            raise MultidenseError(f"no training image has a label for '{task}': look at its files, or leave the task out")
        told = {"setting": labels.setting, "seed": labels.seed, "hash": chosen.assignment.hash, "images": len(reader)}
        write_json(self.folder / "labels.json", told | {"file": labels.file, "counts": counts, "full": full})
        return chosen

    def labels_of(self, network: str) -> tuple[Reader, Reader | None]:
        """What a network trains on, and the labels withheld from it for calibration (None where nothing is calibrated)."""
        settings = self.recipe.networks[network]
        shown, withheld = self.train, None
        if self.recipe.calibrates and network in self.teachers:
            shown, withheld = partial.hold_out(shown, self.recipe.discovery.calibration, seed=self.recipe.labels.seed)
        if settings.tasks:
            shown = Tasks(shown, settings.tasks)
            if not settings.teacher:  # without discovered labels, an image without a label would teach nothing
                shown = Subset(shown, [index for index in range(len(shown)) if shown.annotated(index)])
        return shown, withheld

    # Stages -----------------------------------------------------------------------------------------------------------

    @property
    def teachers(self) -> list[str]:
        """The networks that students learn from."""
        return list(dict.fromkeys(n.teacher for n in self.recipe.networks.values() if n.teacher))

    def discovered_folder(self, teacher: str) -> Path:
        """Where the discoveries of a network are kept."""
        return self.folder / ("discovered" if self.teachers in ([], [teacher]) else f"discovered-{teacher}")

    def train_network(self, name: str, reporter: Reporter = silent) -> Results:
        """Train one network and score it; both are skipped where they are done."""
        recipe, settings, place = self.recipe, self.recipe.networks[name], self.folder / name
        if recipe.training.threads:
            torch.set_num_threads(recipe.training.threads)
        found = self.discover(settings.teacher, reporter) if settings.teacher else None
        training = replace(recipe.training, objective=settings.objective or recipe.training.objective)
        model = build_model(
            recipe.backbone, settings.decoder, recipe.task_objects(name), recipe.width, seed=recipe.seed, **settings.options
        )
        model = fit(
            model,
            self.labels_of(name)[0],
            discovered=found,
            out=place,
            resume=True,
            seed=recipe.seed,
            val=self.val,
            settings=training,
            reporter=reporter,
        )
        model = model.to(self._device)
        if self.recipe.pictures:
            for data, indices in self._pictured():
                evaluation.prediction_pictures(model, data, indices, place / "pictures")
        if not (place / "results.json").exists():  # written last: it says that all of this network is done
            self.evaluate(name, model, reporter).save(place / "results.json")
        return Results.load(place / "results.json")

    def evaluate(self, name: str, model: MultiTask | None = None, reporter: Reporter = silent) -> Results:
        """Scores of a finished network on the validation split, with where they come from."""
        model = model or self.model(name)
        results = evaluation.evaluate(model, self.val, reporter=reporter)
        provenance = {
            "run": self.recipe.name,
            "network": name,
            "title": self.recipe.title(name),
            "seed": self.recipe.seed,
            "checkpoint": "last epoch",
            "labels": self._labels_told(name),
            "settings": json.loads(json.dumps(asdict(self.recipe))),
        }
        cost = read_json(self.folder / name / "cost.json") if (self.folder / name / "cost.json").exists() else {}
        return replace(results, provenance=dict(results.provenance) | provenance, cost=dict(results.cost) | cost)

    def model(self, name: str) -> MultiTask:
        """A finished network of this run."""
        if name not in self.recipe.networks:
            raise MultidenseError(f"{self.folder} has no network {name!r}; there are {', '.join(self.recipe.networks)}")
        if not (self.folder / name / "model").exists():
            raise MultidenseError(
                f"the network '{name}' of {self.folder} is not trained yet: `multidense run` or `train` does that"
            )
        return load_model(self.folder / name / "model").to(self._device).eval()

    def discover(self, teacher: str, reporter: Reporter = silent, out: Path | None = None, **overrides) -> Discovered:
        """What a network of this run finds on the training images; read back where it is done."""
        if self.recipe.training.threads:
            torch.set_num_threads(self.recipe.training.threads)
        settings = {key: value for key, value in asdict(self.recipe.discovery).items() if key != "calibration"} | overrides
        folder = Path(out) if out else self.discovered_folder(teacher)
        return discover(
            self.model(teacher),
            self.train,
            folder,
            calibration=self.labels_of(teacher)[1],
            network_folder=Path(os.path.relpath(self.folder / teacher / "model", folder)),
            reporter=reporter,
            **settings,
        )

    def run(self, reporter: Reporter = silent) -> Path:
        """Everything, to the report's path. Networks of one stage train side by side, in as many processes as the recipe
        allows.
        """
        networks = self.recipe.networks
        _ = self.train  # the assignment is settled before several processes want it
        both = sorted(set(self.everything.ids) & set(self.val.ids))
        if both:
            warnings.warn(f"{len(both)} images are both trained and validated on, such as {', '.join(both[:3])}", stacklevel=2)
        self._render_once()
        self._train_side_by_side([name for name in networks if not networks[name].teacher], reporter)
        for teacher in self.teachers:
            found = self.discover(teacher, reporter)
            if found.manifest["mode"] == "offline":
                self._picture_discovery(found)
        self._train_side_by_side([name for name in networks if networks[name].teacher], reporter)
        return self.report()

    def report(self) -> Path:
        """Pictures of the data, `run.json` and the report."""
        if self.recipe.pictures:
            for data, indices in self._pictured():
                labelled = self.train if data is self.everything else None
                evaluation.truth_pictures(data, indices, self.folder / "pictures", labelled)
        first = self.teachers[0] if self.teachers else None
        write_json(
            self.folder / "run.json",
            {
                "name": self.folder.name,
                "recipe": self.recipe.name,
                "seed": self.recipe.seed,
                "baseline": self.recipe.baseline,
                "trainings": [
                    {"folder": name, "title": self.recipe.title(name), "teacher": network.teacher}
                    for name, network in self.recipe.networks.items()
                ],
                "discovered": self.discovered_folder(first).name if first else None,
            },
        )
        return write_report([self.folder])

    def results(self) -> dict[str, Results]:
        """The results there are, by network."""
        places = {name: self.folder / name / "results.json" for name in self.recipe.networks}
        return {name: Results.load(place) for name, place in places.items() if place.exists()}

    def gains(self) -> dict[str, float]:
        """`delta_mtl` of each network over the baseline, where both have the same scores."""
        results = self.results()
        reference = results.get(self.recipe.baseline or "")
        if reference is None:
            return {}
        return {
            name: delta_mtl(result, reference)
            for name, result in results.items()
            if set(result.scores) == set(reference.scores)
        }

    # Parts ------------------------------------------------------------------------------------------------------------

    def _labels_told(self, network: str) -> dict:
        """Setting, seed and hash of the labels, and how many of each task this network was shown."""
        shown = self.labels_of(network)[0]
        counts = {task.name: sum(task.name in shown.annotated(index) for index in range(len(shown))) for task in shown.tasks}
        return read_json(self.folder / "labels.json") | {"counts": counts}

    @property
    def _device(self) -> str:
        """Where networks run that are not being trained."""
        wanted = self.recipe.training.accelerator
        if wanted == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return {"gpu": "cuda"}.get(wanted, wanted)

    def _pictured(self) -> list[tuple[Reader, list[int]]]:
        return [(data, evenly(len(data), self.recipe.pictures)) for data in (self.val, self.everything)]

    def _picture_discovery(self, found: Discovered) -> None:
        """Pictures of what was found; how right it is where the truth is known goes into the manifest."""
        evaluation.discovered_pictures(
            found, self.everything, evenly(len(self.everything), self.recipe.pictures), found.folder / "pictures"
        )
        if not any("precision" in entry for entry in found.manifest["tasks"].values()):
            for name, told in judge(found, self.everything).items():
                found.manifest["tasks"][name] |= told
            write_json(found.folder / "manifest.json", found.manifest)

    def _render_once(self) -> None:
        """Rooms are rendered before several processes would each render them."""
        if self.recipe.data.reader == "rooms" and self.recipe.data.cache:
            for data in (self.everything, self.val):
                for index in range(len(data)):
                    data.load(index, ())

    def _train_side_by_side(self, names: Sequence[str], reporter: Reporter) -> None:
        todo = [name for name in names if not (self.folder / name / "results.json").exists()]
        if self.recipe.processes == 1 or len(todo) < 2:
            for name in todo:
                self.train_network(name, reporter)
            return
        waiting, running = list(todo), {}
        with _watch(todo, self.folder, self.recipe) as look:
            try:
                while waiting or running:
                    while waiting and len(running) < self.recipe.processes:
                        name = waiting.pop(0)
                        running[name] = self._start(name)
                    time.sleep(0.3)
                    look()
                    for name in [name for name, process in running.items() if process.poll() is not None]:
                        if running.pop(name).returncode:
                            raise MultidenseError(_last_words(self.folder / name / "log.txt", name))
            finally:
                for process in running.values():
                    process.terminate()
                    process.wait()

    def _start(self, name: str) -> subprocess.Popen:
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"MULTIDENSE_CHILD_OF": str(os.getpid())}
        if self.recipe.training.threads:
            environment["OMP_NUM_THREADS"] = str(self.recipe.training.threads)
        command = [sys.executable, "-m", "multidense", "train", str(self.folder), "--network", name]
        with open(place / "log.txt", "w", encoding="utf-8") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def reader_of(recipe: Recipe, split: str) -> Reader:
    """One split of a recipe's data, with all its labels."""
    data, tasks, wanted = recipe.data, recipe.task_objects(), getattr(recipe.data, split, None)
    if data.reader == "rooms":
        return Rooms(tasks, split, size=data.size or (48, 64), length=wanted, seed=data.seed, cache=data.cache)
    reader = Folder(data.description, split, tasks=tasks, size=data.size, root=data.root)
    return Subset(reader, evenly(len(reader), wanted)) if wanted else reader


class _watch:
    """Shows how several trainings in other processes come along: bars on a terminal, lines elsewhere."""

    def __init__(self, names: Sequence[str], folder: Path, recipe: Recipe):
        self.names, self.folder, self.recipe = names, folder, recipe
        self.live = bars() if sys.stderr.isatty() else None
        self.told = {name: (0.0, {}) for name in names}

    def __enter__(self):
        for name in self.names:
            (self.folder / name / "progress.json").unlink(missing_ok=True)
        if self.live:
            self.live.start()
            self.rows = {name: self.live.add_task(self.recipe.title(name), total=None, note="") for name in self.names}
        return self.look

    def look(self) -> None:
        for name in self.names:
            try:
                state = json.loads((self.folder / name / "progress.json").read_text())
            except (OSError, ValueError):
                continue
            title = f"{self.recipe.title(name)}: {state['title']}"
            if self.live:
                row = self.rows[name]
                self.live.update(row, description=title, total=state["total"], completed=state["done"], note=state["note"])
            elif time.monotonic() - self.told[name][0] > 15 and state != self.told[name][1]:
                self.told[name] = (time.monotonic(), state)
                print(f"{title}: {state['done']}/{state['total']}  {state['note']}", file=sys.stderr, flush=True)

    def __exit__(self, *error) -> None:
        if self.live:
            self.live.stop()


def _same(before: dict, now: dict, folder: Path) -> None:
    """Refuse to go on in a folder whose recipe differs in anything that changes results."""
    free = ("processes", "pictures")
    different = list(
        differences({k: v for k, v in before.items() if k not in free}, {k: v for k, v in now.items() if k not in free})
    )
    if different:
        told = "; ".join(different[:6]) + (f" and {len(different) - 6} more" if len(different) > 6 else "")
        raise MultidenseError(f"{folder} holds another recipe: {told}. Choose another folder with --out, or delete this one")


def _last_words(log: Path, name: str) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"training '{name}' failed: {lines[-1] if lines else 'it said nothing'} (see {log})"


def markdown(run: Run) -> str:
    """The table that ends a run: a row a network, a column a score, `delta_mtl` against the baseline."""
    results, gains = run.results(), run.gains()
    columns = list(dict.fromkeys(name for result in results.values() for name in result.scores))
    head = ["network", *columns, "delta_mtl"]
    rows = [
        [
            run.recipe.title(name),
            *(f"{result.scores[c]:.4g}" if c in result.scores else "–" for c in columns),
            f"{gains[name]:+.2f} %" if name in gains else "–",
        ]
        for name, result in results.items()
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
