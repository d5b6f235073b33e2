"""The README's picture, from a finished run: `python docs/picture.py runs/rooms`. Writes docs/rooms.png."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from multidense.files import read_json
from multidense.pictures import grid

HEADS = ("image", "truth", "HiTTs", "discovered label", "confidence")
SCALE = 4


def panel(path: Path, like: tuple[int, int]) -> np.ndarray:
    """One picture, four times as large; white where there is none (an image is labelled there, so nothing was discovered)."""
    if not path.exists():
        return np.full((*like, 3), 255, np.uint8)
    with Image.open(path) as image:
        large = image.convert("RGB").resize((image.width * SCALE, image.height * SCALE), Image.Resampling.NEAREST)
    return np.asarray(large)


def main(run: Path) -> None:
    """Rows of one training image, a row for each task that was hidden on it."""
    teacher = next(entry["folder"] for entry in read_json(run / "run.json")["trainings"] if entry["folder"] == "hitts")
    rows = []
    for place in sorted((run / "pictures" / "train").iterdir())[1:3]:
        hidden = [path.name.split(".")[0] for path in sorted(place.glob("*.truth.png"))]
        for task in (name for name in hidden if name not in read_json(place / "labels.json")["labelled"]):
            with Image.open(place / "input.png") as image:
                like = (image.height * SCALE, image.width * SCALE)
            found = run / "discovered" / "pictures" / "train" / place.name
            files = (
                place / "input.png",
                place / f"{task}.truth.png",
                run / teacher / "pictures" / "train" / place.name / f"{task}.prediction.png",
                found / f"{task}.discovered.png",
                found / f"{task}.confidence.png",
            )
            rows.append([panel(path, like) for path in files])
    sheet = grid(rows, gap=6)
    page = Image.new("RGB", (sheet.shape[1] + 12, sheet.shape[0] + 40), "white")
    page.paste(Image.fromarray(sheet), (6, 34))
    draw = ImageDraw.Draw(page)
    for column, head in enumerate(HEADS):
        draw.text((8 + column * (rows[0][0].shape[1] + 6), 8), head, fill="black", font=ImageFont.load_default(18))
    page.quantize(128).save(Path(__file__).with_name("rooms.png"), optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
