"""Kill `multidense run` itself, children and all, at random moments; run it again each time; compare with one left alone.

    python tests/kill_the_command.py 10 FOLDER [SEED]

Compared are weights, scores, discovered labels, and which files there are. `kills.py` does the same to the library, faster.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from multidense.files import fingerprint, read_json

RECIPE = """name: small
data: {reader: rooms, size: [32, 48], train: 9, val: 4}
labels: {setting: one-label}
tasks: {semseg: {classes: 13}, depth: {bins: 8}, normals: {centers: 6}}
width: 0.125
networks: {mtl: {decoder: shared}, hitts: {decoder: hitts}, student: {decoder: hitts, teacher: hitts}}
baseline: mtl
training: {epochs: 6, batch_size: 3, checkpoint_every: 2, threads: 1}
processes: 2
pictures: 2
"""


def start(recipe: Path, out: Path) -> subprocess.Popen:
    """The command, as the leader of a process group of its own."""
    command = [sys.executable, "-m", "multidense", "run", str(recipe), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


def left_by(run: Path) -> dict[str, object]:
    """What a finished run says: scores by network, and every file that is not a log, a curve or a time."""
    told: dict[str, object] = {
        f"{path.parent.name} scores": read_json(path)["scores"] for path in sorted(run.glob("*/results.json"))
    }
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_file() and not any(word in name for word in ("tensorboard", "log.txt", "progress.json")):
            exact = path.suffix in (".safetensors", ".png", ".csv") or path.name == "index.jsonl"
            told[name] = fingerprint(path) if exact else "there"
    return told


def main(kills: int, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "small.yaml"
    recipe.write_text(RECIPE)
    began = time.monotonic()
    assert start(recipe, folder / "whole").wait() == 0
    whole = time.monotonic() - began
    print(f"uninterrupted: {whole:.0f} s", flush=True)
    made = 0
    while made < kills:
        process = start(recipe, folder / "cut")
        wait = rng.uniform(0.1, 0.9) * whole
        try:
            process.wait(wait)
            compare(folder / "whole", folder / "cut")
            print(f"finished before kill {made + 1}; begun anew", flush=True)
            (folder / "cut").rename(folder / f"done-{time.time_ns()}")
            continue
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            made += 1
            print(
                f"kill {made} after {wait:.1f} s: {sorted(p.parent.name for p in (folder / 'cut').glob('*/results.json'))}",
                flush=True,
            )
    last = start(recipe, folder / "cut")
    assert last.wait() == 0, last.stderr.read()
    compare(folder / "whole", folder / "cut")


def compare(whole: Path, cut: Path) -> None:
    """Say whether both runs left the same, and end here where they did not."""
    ours, theirs = left_by(cut), left_by(whole)
    different = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    print(f"{len(theirs)} things compared;", f"DIFFERENT: {different}" if different else "the same", flush=True)
    if different:
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
