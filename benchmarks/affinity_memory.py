"""What the affinity of all pixels costs MT-CP: one Coherence Fusion Module, fused and with the affinity written out.

    python benchmarks/affinity_memory.py [--size 24 32] [--channels 256] [--batch 1] [--rounds 2] [--out affinity-memory.json]

By default the module of three tasks at full width (256 channels, 512 in the affinity), one image, maps of 24×32, 48×64 and
72×96 pixels: images of 96×128, 192×256 and 288×384. Each case is a process of its own with one thread.

peak     highest resident memory during forward and backward, above the process that holds module, inputs and gradients
kept     bytes that forward makes and leaves for backward, every storage once: exact
seconds  CPU time of forward and backward, the fastest of the rounds after one to warm up
apart    largest error of each form, against the one written out in float64, in the module's output and in all gradients, over
         the largest value there; at the first size
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from step_cost import MEBI, kept_bytes, reset_peak, resident

FORMS = ("fused", "written out")
SIZES = ([24, 32], [48, 64], [72, 96])


def written_out(theta, phi, values, scale):
    """softmax(scale · θᵀφ) values `[b c h w]`, with the affinity `[b n n]` in memory."""
    factor = theta.shape[1] ** -0.5 if scale is None else scale
    affinity = (factor * theta.flatten(2).mT @ phi.flatten(2)).softmax(2)
    return (affinity @ values.flatten(2).mT).mT.unflatten(2, values.shape[-2:])


def module_and_maps(size: list[int], channels: int, batch: int, dtype=None):
    """The module that fuses two auxiliaries, and the three maps it reads, in float32 or `dtype`; with gradients of zero."""
    import torch

    from multidense.models.decoders.mtcp import CoherenceFusion

    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = ["target", "one", "other"]
    module = CoherenceFusion(channels, names[1:], scale=1.0, residual=False).to(dtype=dtype, memory_format=torch.channels_last)
    drawn = torch.randn(len(names), batch, channels, *size).relu()
    maps = {
        name: each.to(dtype=dtype, memory_format=torch.channels_last).requires_grad_()
        for name, each in zip(names, drawn, strict=True)
    }
    for leaf in (*module.parameters(), *maps.values()):
        leaf.grad = torch.zeros_like(leaf)
    return module, maps


def choose(form: str) -> None:
    from multidense.models.decoders import mtcp

    if form == "written out":
        mtcp.coherent = written_out


def serve(form: str, size: list[int], channels: int, batch: int, rounds: int) -> None:
    """One case, as a line of JSON."""
    choose(form)
    module, maps = module_and_maps(size, channels, batch)

    def forward():
        return module(maps["target"], maps)

    def step() -> float:
        began = time.process_time()
        forward().square().mean().backward()
        return time.process_time() - began

    held = resident()
    step()
    reset_peak()
    seconds = min(step() for _ in range(rounds))
    peak = resident("VmHWM") - held
    print(json.dumps({"peak": peak / MEBI, "kept": kept_bytes(module, forward) / MEBI, "seconds": seconds}))


def apart(size: list[int], channels: int, batch: int) -> dict[str, dict[str, float]]:
    """How far each form in float32 is from the one written out in float64."""
    import torch

    from multidense.models.decoders import mtcp

    fused = mtcp.coherent

    def found(attend, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        module, maps = module_and_maps(size, channels, batch, dtype)
        mtcp.coherent = attend
        output = module(maps["target"], maps)
        mtcp.coherent = fused
        output.mul(torch.linspace(-1, 1, output[0, 0].numel(), dtype=dtype).view(output.shape[-2:])).sum().backward()
        return output.detach(), [leaf.grad for leaf in (*module.parameters(), *maps.values())]

    exact, exact_gradients = found(written_out, torch.float64)
    largest = max(float(each.abs().max()) for each in exact_gradients)
    told = {}
    for form, attend in zip(FORMS, (fused, written_out), strict=True):
        output, gradients = found(attend, torch.float32)
        told[form] = {
            "values": float((output - exact).abs().max() / exact.abs().max()),
            "gradients": max(float((a - b).abs().max()) for a, b in zip(gradients, exact_gradients, strict=True)) / largest,
        }
    return told


def measure(options: argparse.Namespace, size: list[int], form: str) -> dict[str, float]:
    """One case in a process of its own."""
    settings = ["--channels", str(options.channels), "--batch", str(options.batch), "--rounds", str(options.rounds)]
    command = [sys.executable, __file__, "--size", *map(str, size), *settings, "--serve", form]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def table(rows: dict[str, dict[str, float]]) -> str:
    first = rows[FORMS[0]]
    lines = [f"{'':<14}{'peak MiB':>12}{'':>8}{'kept MiB':>12}{'':>8}{'seconds':>12}"]
    for name, row in rows.items():
        figures = [f"{row[key]:>12.4g}{row[key] / first[key]:>7.2f}×" for key in ("peak", "kept", "seconds")]
        lines.append(f"{name:<14}" + "".join(figures))
    return "\n".join(lines)


def main() -> None:
    """Both forms at all sizes, as tables and, with `--out`, as JSON with where they were measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, action="append", metavar=("HEIGHT", "WIDTH"), help="may be repeated")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--serve", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.size or list(SIZES)
    if options.serve:
        serve(options.serve, sizes[0], options.channels, options.batch, options.rounds)
        return
    found = {}
    for size in sizes:
        rows = {form: measure(options, size, form) for form in FORMS}
        name = "×".join(map(str, size))
        found[name] = {"pixels": size[0] * size[1], "forms": rows}
        print(f"{name}: {size[0] * size[1]} pixels, {options.channels} channels, {options.batch} image(s)")
        print(table(rows), "\n", flush=True)
    differ = apart(sizes[0], options.channels, options.batch)
    for form, errors in differ.items():
        print(f"{form:<14}apart at {'×'.join(map(str, sizes[0]))}: " + ", ".join(f"{k} {v:.1e}" for k, v in errors.items()))
    if options.out:
        from multidense.files import write_json
        from multidense.results import environment

        settings = {"channels": options.channels, "batch": options.batch, "rounds": options.rounds}
        write_json(options.out, {"settings": settings, "sizes": found, "apart": differ, "environment": environment()})


if __name__ == "__main__":
    main()
