"""Kill a small training at random moments, resume it each time, and compare its weights with an uninterrupted one's.

    python tests/kills.py 10 FOLDER [SEED]

The kills are SIGKILLs at times drawn evenly over what is left of the training; whichever file is being written then is torn.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import multidense as md
from multidense.compat import mend_torchvision
from multidense.data import Rooms, partial
from multidense.models.multitask import load_model, weights_hash

mend_torchvision()
import lightning.fabric  # noqa: E402, F401 (once here, so that the kills fall into work and not into imports)

torch.set_num_threads(1)
TASKS = [md.SemanticSegmentation(13), md.Depth(bins=8), md.Normals(centers=6)]


def train(folder: Path, data) -> None:
    """Both stages, as `multidense run` has them, from wherever the folder stands."""

    def network():
        return md.build_model("segnet", "hitts", TASKS, width=0.125, seed=0)

    settings = {"epochs": 3, "batch_size": 3, "checkpoint_every": 2, "resume": True}
    teacher = md.fit(network(), data, out=folder / "teacher", **settings)
    found = md.discover(teacher, data, folder / "discovered")
    md.fit(network(), data, discovered=found, out=folder / "student", **settings)


def in_a_process(folder: Path, data) -> int:
    child = os.fork()
    if child == 0:
        try:
            train(folder, data)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def stands_at(folder: Path) -> str:
    """What was there when the kill came."""
    for stage in ("student", "discovered", "teacher"):
        place = folder / stage
        if (place / "model").exists() or (place / "manifest.json").exists():
            return f"after {stage}"
        if (place / "checkpoint.pt").exists():
            return f"{stage} at step {torch.load(place / 'checkpoint.pt', weights_only=True)['step']} or later"
        if (place / "index.jsonl").exists():
            return f"{stage} at image {len((place / 'index.jsonl').read_text().splitlines())}"
        if place.exists():
            return f"{stage} before its first checkpoint"
    return "before anything"


def main(kills: int, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = partial.one_label(Rooms(TASKS, "train", size=(32, 48), length=9, cache=folder / "rooms"), seed=0)
    for index in range(len(data)):
        data.load(index, ())
    began = time.monotonic()
    assert os.waitpid(in_a_process(folder / "whole", data), 0)[1] == 0
    whole = time.monotonic() - began
    print(f"uninterrupted: {whole:.1f} s")
    made = 0
    while made < kills:
        child = in_a_process(folder / "cut", data)
        wait = rng.uniform(0.02, 0.5) * whole
        time.sleep(wait)
        if os.waitpid(child, os.WNOHANG)[0]:
            print(f"finished before kill {made + 1}; begun anew")
            (folder / "cut").rename(folder / f"done-{made}")
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        made += 1
        print(f"kill {made} after {wait:.2f} s: {stands_at(folder / 'cut')}")
    assert os.waitpid(in_a_process(folder / "cut", data), 0)[1] == 0
    for stage in ("teacher", "student"):
        hashes = [weights_hash(load_model(folder / run / stage / "model")) for run in ("whole", "cut")]
        print(stage, *hashes, "same weights" if hashes[0] == hashes[1] else "DIFFERENT")
        if hashes[0] != hashes[1]:
            sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
