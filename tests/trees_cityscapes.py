"""Small Cityscapes trees on disk, in the very formats of the two layouts, for tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = [
    (-1, -1, -1), (0, -1, -1), (1, -1, -1), (2, -1, -1), (3, -1, -1), (4, -1, -1), (5, -1, -1), (6, -1, -1), (7, 0, 0),
    (8, 1, 0), (9, -1, 0), (10, -1, 0), (11, 2, 1), (12, 3, 1), (13, 4, 1), (14, -1, 1), (15, -1, 1), (16, -1, 1), (17, 5, 2),
    (18, -1, 2), (19, 6, 2), (20, 7, 2), (21, 8, 3), (22, 9, 3), (23, 10, 4), (24, 11, 5), (25, 12, 5), (26, 13, 6),
    (27, 14, 6), (28, 15, 6), (29, -1, 6), (30, -1, 6), (31, 16, 6), (32, 17, 6), (33, 18, 6),
]  # fmt: skip
"""(label id, train id, category) of the 35 labels; −1 where there is none, and for the category of the licence plate."""


def scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A street: label ids uint8 `[h w]` in patches (255 for −1), disparity uint16 `[h w]` that grows downward, image uint8."""
    height, width = size
    ids = np.array([one for one, _, _ in LABELS]).astype(np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 8 // width
    labels = rng.choice(ids, (4, 8))[rows[:, None], columns]
    disparity = np.linspace(400, 32257, height)[:, None] + rng.uniform(-300, 0, (height, width))
    disparity[rng.random((height, width)) < 0.1] = 0
    colour = np.stack([labels * 7, labels * 31, labels * 53], -1)  # bytes that wrap around: a colour for every id
    return labels, disparity.astype(np.uint16), (colour // 2 + rng.integers(0, 64, colour.shape)).astype(np.uint8)


def classes(labels: np.ndarray, number: int) -> np.ndarray:
    """Label ids as the 7 categories (only ids that are evaluated) or the 19 train ids, int64, −1 where not valid."""
    table = np.full(256, -1)
    for label, train, category in LABELS:
        table[label] = train if number == 19 or train < 0 else category
    return table[labels]


def write_preprocessed(root: Path, train: int = 4, val: int = 2, size: tuple[int, int] = (32, 64)) -> None:
    """`{train,val}/{image,label_7,label_19,depth}/{i}.npy` below `root`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("image", "label_7", "label_19", "depth"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            labels, disparity, image = scene(rng, size)
            np.save(root / split / "image" / f"{i}.npy", image.astype(np.float32) / 255)
            np.save(root / split / "label_7" / f"{i}.npy", classes(labels, 7).astype(np.float32))
            np.save(root / split / "label_19" / f"{i}.npy", classes(labels, 19).astype(np.float32))
            np.save(root / split / "depth" / f"{i}.npy", (disparity / 65535)[..., None].astype(np.float32))


def write_official(root: Path, train: int = 4, val: int = 2, size: tuple[int, int] = (64, 128)) -> None:
    """`leftImg8bit`, `gtFine` and `disparity` below `root`, two cities a split, with the files nobody reads beside them."""
    rng = np.random.default_rng(0)
    cities = {"train": ("ulm", "aachen"), "val": ("munster", "frankfurt")}
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            city = cities[split][i % 2]
            labels, disparity, image = scene(rng, size)
            pictures = {
                "leftImg8bit": {"leftImg8bit": image},
                "gtFine": {"gtFine_labelIds": labels, "gtFine_color": image, "gtFine_instanceIds": labels.astype(np.uint16)},
                "disparity": {"disparity": disparity},
            }
            for kind, named in pictures.items():
                folder = root / kind / split / city
                folder.mkdir(parents=True, exist_ok=True)
                for name, array in named.items():
                    Image.fromarray(array).save(folder / f"{city}_{i:06d}_000019_{name}.png")
            outline = {"imgHeight": size[0], "imgWidth": size[1], "objects": []}
            (root / "gtFine" / split / city / f"{city}_{i:06d}_000019_gtFine_polygons.json").write_text(json.dumps(outline))
