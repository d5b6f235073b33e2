"""How many rooms a second one core renders, labels included: python benchmarks/rooms_speed.py.

Process time counts only this program's work, so it is the figure to compare on a shared machine.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when numpy is first imported

import time
from collections.abc import Callable

from multidense.data.scenes import render

SCENES = {(48, 64): 60, (64, 96): 60, (288, 384): 8}


def seconds(clock: Callable[[], float], size: tuple[int, int], count: int) -> float:
    start = clock()
    for index in range(count):
        render(0, index, size)
    return clock() - start


def main() -> None:
    render(0, 0, (48, 64))
    print(f"{'size':>10}{'images/s, process':>20}{'images/s, wall':>18}")
    for (height, width), count in SCENES.items():
        rates = [count / seconds(clock, (height, width), count) for clock in (time.process_time, time.perf_counter)]
        print(f"{f'{height}x{width}':>10}{rates[0]:>20.1f}{rates[1]:>18.1f}")


if __name__ == "__main__":
    main()
