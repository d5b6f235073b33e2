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

The lines are those of `method_rows.py`; `--decoder` (and `--backbone`) add one for a network of other parts, trained as MTL is.
What steps is `method_step.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from method_rows import ROWS, SYSTEMS, Row, counted, networks_of
from multidense.comparison import catalogue
from multidense.files import write_json, write_text
from multidense.published import tables
from multidense.results import environment
from multidense.types import MultidenseError

STEPPING = Path(__file__).with_name("method_step.py")


class Serving:
    """A row whose networks train in processes of their own, and what was measured of it."""

    def __init__(self, row: Row, options: argparse.Namespace):
        self.row, self.seconds, self.failed = row, [], ""
        self.processes: list[subprocess.Popen] = []
        self.needs: list[dict[str, float]] = []
        settings = {name: getattr(options, name) for name in ("size", "width", "batch", "labels", "seed")}
        for name in networks_of(row)[1]:
            asked = json.dumps({"row": asdict(row), "network": name} | settings)
            command = [sys.executable, str(STEPPING), asked]
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
    options = parser.parse_args(words)
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
