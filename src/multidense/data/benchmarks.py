"""The benchmarks by name."""

from __future__ import annotations

from multidense.data.benchmark import Benchmark
from multidense.data.cityscapes import Cityscapes
from multidense.data.nyuv2 import NYUv2
from multidense.data.pascal_context import PascalContext

BENCHMARKS: dict[str, type[Benchmark]] = {kind.name: kind for kind in (NYUv2, Cityscapes, PascalContext)}
"""What recipes and the command line call them."""
