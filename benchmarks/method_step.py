"""One network of the cost tables, in a process of its own: its training goes on by a step for every line it reads.

    python benchmarks/method_step.py '{"row": …, "network": …, "size": [64, 96], "width": 1, "batch": 3, …}'

It says in a line of JSON what the network needs, in MiB, then the seconds of each step: CPU time of this thread, without making
the batch. `method_cost.py` starts it, and asks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from method_rows import Row, networks_of, prepared
from multidense import train
from multidense.data import Augment, Reader, Rooms, Wrapped
from multidense.feed import Feed
from multidense.models import MultiTask, build_model
from multidense.ops import pool
from multidense.progress import Reporter
from multidense.spawned import fabric_for, launched
from multidense.train import fit_codebooks, train_loop
from multidense.types import FeatureTarget, Sample, Target
from step_cost import MEBI, reset_peak, resident

WARM_UP = 3
STRIDE = 4  # of discovered features, as discovery stores them
KEPT_SHARE = 0.6  # of discovered pixels


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


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    serve(Row(**asked.pop("row")), asked.pop("network"), argparse.Namespace(**asked))
