"""A run: stage 1, discovery, stage 2, evaluation and report, from a recipe into one folder. What is done already is skipped.

RUN/recipe.yaml            every setting          RUN/NETWORK/model/          the finished network
RUN/assignment.csv         who is labelled        RUN/NETWORK/results.json    its scores on the validation split
RUN/discovered/            labels, confidences    RUN/report.html, report.md
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch

from multidense import evaluation
from multidense.checkpoint import State, differences
from multidense.config import load_recipe
from multidense.curves import read_history
from multidense.data import Reader, partial
from multidense.data.joined import Listed, spread
from multidense.data.subset import Subset, Tasks
from multidense.discovery import discover
from multidense.files import read_json, write_json
from multidense.jobs import Job, places, plan, work_off
from multidense.joining import check_labelled, of_collections
from multidense.models.multitask import MultiTask, build_model, load_model
from multidense.progress import Reporter, silent
from multidense.quality import judge, on_training_images
from multidense.recipe import Recipe
from multidense.report import write_report
from multidense.results import Results, delta_mtl, other_rules
from multidense.sources import reader_of
from multidense.store import MANIFEST, Discovered
from multidense.tokens import write_tokens
from multidense.train import INITIAL_WEIGHTS, fit
from multidense.types import MultidenseError


class Run:
    """One recipe in one folder.

    `Run(recipe, folder)` makes the folder, or goes on in it where it holds the same recipe; `Run.open(folder)` takes the recipe
    from it.
    """

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, Path(folder)
        kept = self.folder / "recipe.yaml"
        begun = {path.parent.name for name in ("model", "checkpoint.pt") for path in self.folder.glob(f"*/{name}")}
        if kept.exists() and kept.read_text(encoding="utf-8") == recipe.to_yaml():
            return
        if kept.exists() and begun:
            _same(load_recipe(kept), recipe, begun, self.folder)
        elif kept.exists():
            (self.folder / "assignment.csv").unlink(missing_ok=True)  # nothing was trained with it yet
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
        shown, withheld = partial.full(self.everything) if settings.full_labels else self.train, None
        shown = of_collections(shown, settings.collections)
        for found in {
            key: self.recipe.discovery_of(n) for key, n in self.recipe.networks.items() if network in n.teachers
        }.values():
            if found.calibrates and not withheld:
                shown, withheld = partial.hold_out(shown, found.calibration, seed=self.recipe.labels.seed)
        if settings.tasks:
            shown = Tasks(shown, settings.tasks)
        if settings.collections:
            check_labelled(self.recipe, network, shown)
        if (settings.tasks or settings.collections) and not settings.teachers:
            # Without discovered labels, an image without a label would teach nothing.
            shown = Subset(shown, [index for index in range(len(shown)) if shown.annotated(index)])
        return shown, withheld

    # Stages -----------------------------------------------------------------------------------------------------------

    @property
    def teachers(self) -> list[str]:
        """The networks that students learn from."""
        return list(dict.fromkeys(teacher for network in self.recipe.networks.values() for teacher in network.teachers))

    def discovered_folder(self, teacher: str, student: str | None = None) -> Path:
        """Where the discoveries of a network are kept: the recipe's, or those of a student with settings of its own."""
        own = student is not None and self.recipe.networks[student].discovery is not None
        parts = ["discovered", *([student] if own else []), *([teacher] if self.teachers not in ([], [teacher]) else [])]
        return self.folder / "-".join(parts)

    def train_network(self, name: str, reporter: Reporter = silent) -> Results:
        """Train one network and score it; both are skipped where they are done."""
        recipe, settings, place = self.recipe, self.recipe.networks[name], self.folder / name
        if recipe.training.threads:
            torch.set_num_threads(recipe.training.threads)
        found = [self.discover(teacher, reporter, student=name) for teacher in settings.teachers]
        training = recipe.training_of(settings)
        begun = any((place / kept).exists() for kept in ("model", State.file))  # its weights take the place of the first ones
        model = build_model(
            recipe.backbone,
            settings.decoder,
            recipe.task_objects(name),
            recipe.width,
            seed=recipe.seed,
            initial=not begun,
            **recipe.options_of(settings),
        )
        weights = getattr(model.backbone, "fit", None)
        if weights is not None:
            with reporter.work("backbone weights", len(weights.loaded)) as advance:
                advance(len(weights.loaded), weights.told())
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
        if not (place / "training_images.json").exists():
            truth = of_collections(self.everything, settings.collections)
            told = on_training_images(model, self.labels_of(name)[0], truth, reporter=reporter)
            if told:
                write_json(place / "training_images.json", told)
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
        if (self.folder / name / INITIAL_WEIGHTS).exists():
            provenance["initial_weights"] = read_json(self.folder / name / INITIAL_WEIGHTS)
        cost = read_json(self.folder / name / "cost.json") if (self.folder / name / "cost.json").exists() else {}
        curve = self.folder / name / "history.csv"
        beside = other_rules(read_history(curve)) if curve.exists() else {}
        told = dict(results.provenance) | provenance
        return replace(results, provenance=told, cost=dict(results.cost) | cost, beside=beside)

    def model(self, name: str) -> MultiTask:
        """A finished network of this run."""
        if name not in self.recipe.networks:
            raise MultidenseError(f"{self.folder} has no network {name!r}; there are {', '.join(self.recipe.networks)}")
        if not (self.folder / name / "model").exists():
            raise MultidenseError(
                f"the network '{name}' of {self.folder} is not trained yet: `multidense run` or `train` does that"
            )
        return load_model(self.folder / name / "model").to(self._device).eval()

    def discover(
        self, teacher: str, reporter: Reporter = silent, out: Path | None = None, student: str | None = None, **overrides
    ) -> Discovered:
        """What a network of this run finds on the training images (for a `student`, by its settings); read back where it is
        done.
        """
        if self.recipe.training.threads:
            torch.set_num_threads(self.recipe.training.threads)
        chosen = self.recipe.discovery_of(self.recipe.networks[student]) if student else self.recipe.discovery
        settings = {key: value for key, value in asdict(chosen).items() if key != "calibration"} | overrides
        folder = Path(out) if out else self.discovered_folder(teacher, student)
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
        """Everything, to the report's path. With more than one of the recipe's `processes`, what does not wait for one another
        is done side by side, each in a process of its own, and one network that fails does not keep the others from ending.
        """
        _ = self.train  # the assignment is settled before several processes want it
        both = sorted(set(self.everything.ids) & set(self.val.ids))
        if both:
            warnings.warn(f"{len(both)} images are both trained and validated on, such as {', '.join(both[:3])}", stacklevel=2)
        self._render_once()
        if self.recipe.processes > 1:
            jobs = plan([self.folder], self.recipe, self.recipe.networks)
            failed = work_off(jobs, places(self.recipe, self.recipe.processes), do)
            if failed:
                raise MultidenseError("; ".join(f"{job} failed: {why}" for job, why in failed.items()))
        for name in (name for stage in self.recipe.stages for name in stage):
            for teacher in self.recipe.networks[name].teachers:
                self.find(teacher, name, reporter)
            if not (self.folder / name / "results.json").exists():
                self.train_network(name, reporter)
        return self.report()

    def find(self, teacher: str, student: str | None = None, reporter: Reporter = silent) -> Discovered:
        """What `discover` returns, and how good it is, and pictures of it, for the report."""
        found = self.discover(teacher, reporter, student=student)
        self._judge_discovery(found, reporter)
        if found.manifest["mode"] == "offline":
            self._picture_discovery(found)
        return found

    def report(self) -> Path:
        """Pictures of the data, `run.json` and the report."""
        if self.recipe.pictures:
            for data, indices in self._pictured():
                labelled = self.train if data is self.everything else None
                evaluation.truth_pictures(data, indices, self.folder / "pictures", labelled)
        self.index()
        return write_report([self.folder])

    def index(self) -> None:
        """Write `run.json`, by which a report knows the networks of this run: those that were begun."""
        begun = {name: network for name, network in self.recipe.networks.items() if (self.folder / name).exists()}
        if not begun:
            raise MultidenseError(f"{self.folder} holds no network yet: `multidense run` or `train` makes them")
        first = next((teacher for network in begun.values() for teacher in network.teachers), None)
        write_json(
            self.folder / "run.json",
            {
                "name": self.folder.name,
                "recipe": self.recipe.name,
                "seed": self.recipe.seed,
                "baseline": self.recipe.baseline,
                "trainings": [
                    {"folder": name, "title": self.recipe.title(name), "teacher": next(iter(network.teachers), None)}
                    for name, network in begun.items()
                ],
                "discovered": self.discovered_folder(first).name if first else None,
            },
        )

    def look_at_tokens(self, reporter: Reporter = silent) -> None:
        """What the tokens of its finished networks say, for the report; done again only where the weights have changed."""
        for name in self.recipe.networks:
            if (self.folder / name / "model").exists():
                write_tokens(self.model(name), self.val, self.folder / name / "tokens", reporter=reporter)

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
        return [(data, spread(data, self.recipe.pictures)) for data in (self.val, self.everything)]

    def _judge_discovery(self, found: Discovered, reporter: Reporter) -> None:
        """How good the found labels are where labels were hidden, for the report; in short, also into the manifest."""
        if (found.folder / "quality.json").exists():
            return
        listed = found.manifest.get("collections")
        truth = self.everything if listed is None else Listed(self.everything, listed)
        told = judge(found.teacher, self.train, truth, found.thresholds, reporter=reporter)
        for name, entry in told.items():
            found.manifest["tasks"][name] |= {key: entry[key] for key in ("precision", "coverage", "tolerance")}
        if told:
            write_json(found.folder / MANIFEST, found.manifest)
            write_json(found.folder / "quality.json", told)  # written last: it says that both are done

    def _picture_discovery(self, found: Discovered) -> None:
        shown = spread(self.everything, self.recipe.pictures)
        evaluation.discovered_pictures(found, self.everything, shown, found.folder / "pictures")

    def _render_once(self) -> None:
        """Rooms are rendered before several processes would each render them."""
        if self.recipe.data.reader == "rooms" and self.recipe.data.cache:
            for data in (self.everything, self.val):
                for index in range(len(data)):
                    data.load(index, ())


def do(job: Job, reporter: Reporter = silent) -> None:
    """What a job of a run is: train a network, or find what a teacher knows for it."""
    run = Run.open(job.folder)
    if job.teacher:
        run.find(job.teacher, job.network, reporter)
    else:
        run.train_network(job.network, reporter)


def _same(before: Recipe, now: Recipe, begun: Collection[str], folder: Path) -> None:
    """Refuse to go on in a folder whose recipe differs in anything that changes the results of the networks begun in it. Where
    the data lies is not among that: what it holds is compared by the training.
    """

    free = ("processes", "pictures", "published", "gpu_hours")

    def fixed(recipe: Recipe) -> dict:
        settings = {key: value for key, value in asdict(recipe.without_places()).items() if key not in free}
        return settings | {"networks": {name: network for name, network in settings["networks"].items() if name in begun}}

    different = list(differences(fixed(before), fixed(now)))
    if different:
        told = "; ".join(different[:6]) + (f" and {len(different) - 6} more" if len(different) > 6 else "")
        raise MultidenseError(f"{folder} holds another recipe: {told}. Choose another folder with --out, or delete this one")


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
