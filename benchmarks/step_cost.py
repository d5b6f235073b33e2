"""What a training step costs: time and memory of HiTTs over the MTL baseline's, each case in a process of its own.

    python benchmarks/step_cost.py [--size 64 96] [--width 1] [--batch 2] [--rounds 8] [--out step-cost.json]

By default full width, two images, 64×96 and 192×256 pixels. The cases take turns, a step each, so that what else the machine
does falls on all of them: where the ratios of the fastest steps and of the median steps differ, it was busy.

seconds  CPU time of one thread for a step, after three to warm up
peak     highest resident memory during steps, above the process before its model was built
active   the same, above the process that holds model, gradients and the state of Adam: what batch and image size cost
kept     bytes that the forward pass leaves for the backward pass, every storage once, model apart: exact, free of noise
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

CASES = {
    "MTL baseline": ("shared", False, {}),
    "MTL, codebooks": ("shared", True, {}),
    "HiTTs": ("hitts", True, {}),
    "HiTTs, lean": ("hitts", True, {"lean": True}),
}
MEBI = 2**20
STATUS = Path("/proc/self/status")


def serve(decoder: str, codebooks: bool, extra: dict, size: list[int], width: float, batch: int) -> None:
    """One case: says what it needs, then the seconds of one more step for every line it is sent."""
    import torch

    import multidense as md
    from multidense.models.cost import count_parameters

    torch.set_num_threads(1)
    bins, centers = (30, 20) if codebooks else (None, None)
    tasks = [md.SemanticSegmentation(classes=13), md.Depth(bins=bins), md.Normals(centers=centers)]
    image = torch.rand(batch, 3, *size)
    idle = resident()
    model = md.build_model("segnet", decoder, tasks, width=width, seed=0, **extra).train()
    optimizer = torch.optim.Adam(model.parameters())

    def forward() -> torch.Tensor:
        return sum(logits.square().mean() for logits in model(image).logits.values())

    def step() -> float:
        began = time.process_time()
        loss = forward()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.process_time() - began

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = resident()
    reset_peak()
    for _ in range(3):
        step()
    peak = resident("VmHWM")
    needs = {"parameters": count_parameters(model), "peak": (peak - idle) / MEBI, "active": (peak - held) / MEBI}
    print(json.dumps(needs | {"kept": kept_bytes(model, forward) / MEBI}), flush=True)
    for _ in sys.stdin:
        print(step(), flush=True)


def kept_bytes(model, forward) -> int:
    """Bytes of the storages that `forward()` made and that are alive at its end, without those of the model itself."""
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    made = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            results = function(*arguments, **(keywords or {}))
            storages = [result.untyped_storage() for result in tree_leaves(results) if hasattr(result, "untyped_storage")]
            made.update({StorageWeakRef(storage): (storage.data_ptr(), storage.nbytes()) for storage in storages})
            return results

    with Watch():
        alive = forward()  # noqa: F841 (its graph is what is being measured)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    return sum(size for storage, (place, size) in made.items() if not storage.expired() and place not in own)


def resident(what: str = "VmRSS") -> int:
    """Bytes of resident memory, now or (`VmHWM`) at its highest since `reset_peak`; elsewhere than on Linux ever highest."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[what].split()[0]) * 1024


def reset_peak() -> None:
    """Let the highest resident memory be counted anew, where the system can."""
    if STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")


def measure(options: argparse.Namespace, size: list[int]) -> dict[str, dict]:
    """Every case at one size, a step each in turn."""
    settings = ["--size", *map(str, size), "--width", str(options.width), "--batch", str(options.batch)]
    serving = {
        name: subprocess.Popen(
            [sys.executable, __file__, *settings, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for name in options.case or CASES
    }
    rows = {name: json.loads(process.stdout.readline()) | {"seconds": []} for name, process in serving.items()}
    for _ in range(options.rounds):
        for name, process in serving.items():
            process.stdin.write("\n")
            process.stdin.flush()
            rows[name]["seconds"].append(float(process.stdout.readline()))
    for process in serving.values():
        process.communicate()
    return rows


def table(rows: dict[str, dict]) -> str:
    """Figures of all cases, with their ratios to the first."""
    columns = {
        "s, min": lambda row: min(row["seconds"]),
        "s, median": lambda row: median(row["seconds"]),
        "peak MiB": lambda row: row["peak"],
        "active MiB": lambda row: row["active"],
        "kept MiB": lambda row: row["kept"],
    }
    first = next(iter(rows.values()))
    lines = [f"{'':<16}{'parameters':>12}" + "".join(f"{name:>12}{'':>7}" for name in columns)]
    for name, row in rows.items():
        figures = "".join(f"{of(row):>12.4g}{of(row) / of(first):>6.2f}×" for of in columns.values())
        lines.append(f"{name:<16}{row['parameters']:>12,}{figures}")
    return "\n".join(lines)


def main() -> None:
    """All cases at all sizes, as tables and, with `--out`, as JSON with where they were measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, action="append", metavar=("HEIGHT", "WIDTH"), help="may be repeated")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help="steps of each case that are timed")
    parser.add_argument("--case", choices=CASES, action="append", help="only these; the first is what ratios are to")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--serve", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.size or [[64, 96], [192, 256]]
    if options.serve:
        serve(*CASES[options.serve], sizes[0], options.width, options.batch)
        return
    found = {}
    for size in sizes:
        name = "×".join(map(str, size))
        found[name] = measure(options, size)
        print(f"{name}, width {options.width:g}, {options.batch} images, {options.rounds} steps")
        print(table(found[name]), "\n", flush=True)
    if options.out:
        from multidense.files import write_json
        from multidense.results import environment

        settings = {"width": options.width, "batch": options.batch, "rounds": options.rounds}
        write_json(options.out, {"settings": settings, "sizes": found, "environment": environment()})


if __name__ == "__main__":
    main()
