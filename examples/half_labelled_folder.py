"""Makes a small half-labelled folder to try docs/guide.md on: `python examples/half_labelled_folder.py my-rooms`.

Images are rendered rooms. Each training image has one label file (classes, depth or normals in turn); the last quarter of the
images is fully labelled, for validation. Beside the folder's images stand its description and a recipe.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import multidense as md
from multidense.data import Rooms

DESCRIPTION = """name: my-rooms
images: images/{id}.png
splits:
  val: val.txt # one id a line
  train: rest
tasks:
  semseg:
    files: semseg/{id}.png # an image without this file is simply not labelled for the task
    classes: [wall, floor, ceiling, window, door, picture, table, chair, sofa, lamp, shelf, box, ball]
    void: 255
  depth: {files: "depth/{id}.png", unit: mm}
  normals: {files: "normals/{id}.png", axes: [right, up, viewer]}
"""

RECIPE = """name: my-rooms
data: {reader: folder, description: description.yaml}
labels: {setting: full} # use every label file there is
tasks:
  semseg: {classes: 13}
  depth: {bins: 30}
  normals: {centers: 20}
width: 0.25
networks:
  mtl: {decoder: shared, title: MTL baseline}
  hitts: {decoder: hitts, title: HiTTs}
  student: {decoder: hitts, title: HiTTs + discovered labels, teacher: hitts}
baseline: mtl
training: {epochs: 8}
"""


def make(root: Path, count: int = 40, size: tuple[int, int] = (48, 64)) -> None:
    """Write `count` images of `size`, their labels, the description and the recipe into `root`."""
    tasks = [md.SemanticSegmentation(classes=13), md.Depth(), md.Normals()]
    rooms = Rooms(tasks, "train", size=size, length=count)
    whole = range(count - count // 4, count)
    (root / "images").mkdir(parents=True)
    for number in range(count):
        sample = rooms[number]
        pixels = (sample.image * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number:03d}.png")
        for task in tasks if number in whole else [tasks[number % 3]]:
            target = sample.targets[task.name]
            task.write(root / task.name / f"{number:03d}.png", target.value, target.valid)
    (root / "val.txt").write_text("".join(f"{number:03d}\n" for number in whole), encoding="utf-8")
    (root / "description.yaml").write_text(DESCRIPTION, encoding="utf-8")
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "my-rooms")
    make(root)
    print(f"{root} is made. Now: multidense data show {root / 'description.yaml'} --out look.png")
    print(f"          then: multidense run {root / 'recipe.yaml'}")


if __name__ == "__main__":
    main()
