"""What a training step costs: time and memory of each decoder over the MTL baseline's, each in a process of its own.

    python benchmarks/step_cost.py [--size 48 64] [--width 0.25] [--batch 4] [--steps 12]

Process seconds of one thread (the median of the steps) and the peak resident memory above the process before its first step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

CASES = {"MTL baseline": ("shared", False), "MTL, codebooks": ("shared", True), "HiTTs": ("hitts", True)}


def measure(decoder: str, codebooks: bool, size: list[int], width: float, batch: int, steps: int) -> dict[str, float]:
    """One case: seconds a step and MiB."""
    import torch

    import multidense as md
    from multidense.models.cost import count_parameters

    torch.set_num_threads(1)
    bins, centers = (30, 20) if codebooks else (None, None)
    tasks = [md.SemanticSegmentation(classes=13), md.Depth(bins=bins), md.Normals(centers=centers)]
    model = md.build_model("segnet", decoder, tasks, width=width, seed=0).train()
    optimizer = torch.optim.Adam(model.parameters())
    image = torch.rand(batch, 3, *size)
    resting, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(steps):
        began = time.process_time()
        outputs = model(image)
        loss = sum(logits.square().mean() for logits in outputs.logits.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resting
    return {"seconds": sorted(seconds)[len(seconds) // 2], "mebibytes": peak / 1024, "parameters": count_parameters(model)}


def main() -> None:
    """All cases, as a table of figures and of ratios to the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[48, 64])
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = (options.size, options.width, options.batch, options.steps)
    if options.case:
        print(json.dumps(measure(*CASES[options.case], *settings)))
        return
    rows = {}
    for name in CASES:
        command = [sys.executable, __file__, *sys.argv[1:], "--case", name]
        rows[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    first = next(iter(rows.values()))
    print(f"{'':<16}{'parameters':>12}{'s a step':>10}{'ratio':>7}{'MiB':>8}{'ratio':>7}")
    for name, row in rows.items():
        time_ratio, memory_ratio = row["seconds"] / first["seconds"], row["mebibytes"] / first["mebibytes"]
        print(
            f"{name:<16}{row['parameters']:>12,}{row['seconds']:>10.3f}{time_ratio:>7.2f}"
            f"{row['mebibytes']:>8.0f}{memory_ratio:>7.2f}"
        )


if __name__ == "__main__":
    main()
