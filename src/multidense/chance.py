"""Chance in regularisers: a function of (seed, step, image), so that resuming, batch mates and processes change nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from multidense.regularizer import Regularizer
from multidense.task import Task


class Drawing(Regularizer):
    """A regulariser that draws at random, and that may begin gently.

    It counts its steps itself; the count lies in the checkpoint. Every image has its own generator in every step.

    Args:
        tasks: the model's tasks.
        weight: of all its terms in the objective.
        ramp_up: over how many steps the weight grows from 0, evenly; 0 begins with all of it.
        seed: of everything it draws.
    """

    def __init__(self, tasks: Sequence[Task], *, weight: float, ramp_up: int = 0, seed: int = 0):
        super().__init__(tasks, weight=weight)
        if ramp_up < 0:
            raise ValueError(f"ramp_up must not be negative, found {ramp_up}")
        self.ramp_up, self.seed, self.step = ramp_up, seed, 0

    def begin(self, ids: Sequence[str], device: torch.device) -> tuple[list[torch.Generator], float]:
        """A step begins: a generator on `device` for each image, and how much of the weight counts already, 0 … 1."""
        generators = [torch.Generator(device).manual_seed(self._seed(one)) for one in ids]
        share = min(1.0, self.step / self.ramp_up) if self.ramp_up else 1.0
        self.step += 1
        return generators, share

    def _seed(self, image: str) -> int:
        digest = hashlib.sha256(f"{self.seed} {self.step} {image}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = state["step"]
