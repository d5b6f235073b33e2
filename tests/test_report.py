import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multidense.curves import nice_ticks, read_history
from multidense.report import write_report
from multidense.results import delta_mtl
from multidense.types import MultidenseError

BASE = {"classes.mIoU": 40.0, "range.absErr": 0.5, "facing.within_11.25": 30.0}
TITLES = {"mtl": "MTL baseline", "hitts": "HiTTs", "student": "HiTTs + discovered labels"}


def better(percent: float) -> dict[str, float]:
    """Scores whose delta_mtl over BASE is `percent`."""
    return {name: value * (1 + (-1 if name.endswith("Err") else 1) * percent / 100) for name, value in BASE.items()}


def write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), shade, np.uint8)).save(path)


def fake_run(path: Path, gains: tuple[float, float] = (6.1, 12.3), seed: int = 0) -> Path:
    """A run folder with everything in it; task names are none the package knows."""
    trainings = [{"folder": folder, "title": title, "teacher": None} for folder, title in TITLES.items()]
    trainings[2]["teacher"] = "hitts"
    run = {"name": f"small-{seed}", "recipe": "rooms", "baseline": "mtl", "trainings": trainings, "discovered": "discovered"}
    write(path / "run.json", run)
    write(path / "recipe.yaml", "model:\n  decoder: <hitts>\n")
    counts, full = {"classes": 67, "range": 66}, {"classes": 200, "range": 200}
    labels = {"setting": "one-label", "seed": seed, "hash": "abc123", "images": 200, "counts": counts, "full": full}
    write(path / "labels.json", labels)
    for folder, scores in zip(TITLES, (BASE, better(gains[0]), better(gains[1])), strict=True):
        results = {
            "scores": scores,
            "further": {"range.rmse": 0.8},
            "per_class": {"classes": {"<b>": scores["classes.mIoU"], "wall": None}},
            "provenance": {"seed": seed, "data": {"split": "val"}, "checkpoint": "last epoch"},
            "cost": {"parameters": 24.9e6, "train_seconds": 3600.0, "step_seconds": 0.25},
        }
        write(path / folder / "results.json", results)
        header = "epoch,step,lr,loss,supervised.classes,features.range,val.classes.mIoU"
        write(path / folder / "history.csv", f"{header}\n1,9,0.1,3,2.5,,\n2,18,0.1,2,nan,0.5,31\n")
        for place in ("val/a__1", "train/b"):
            for task in ("classes", "range"):
                picture(path / folder / "pictures" / place / f"{task}.prediction.png", 90)
                picture(path / folder / "pictures" / place / f"{task}.confidence.png", 200)
    for place in ("val/a__1", "train/b"):
        picture(path / "pictures" / place / "input.png", 120)
        picture(path / "pictures" / place / "classes.truth.png", 60)
    write(path / "pictures/train/b/labels.json", {"labelled": ["classes"]})
    picture(path / "discovered/pictures/train/b/range.discovered.png", 30)
    picture(path / "discovered/pictures/train/b/range.confidence.png", 220)
    found = {"threshold": 0.81, "rule": "share 0.6", "images": 134, "kept_share": 0.604, "precision": 0.83}
    found["classes"] = {"<i>": {"pixels": 1234, "kept": 0.7}, "floor": {"pixels": 0, "kept": None}}
    manifest = {"version": 1, "network": {"folder": "hitts", "hash": "77aa"}, "mode": "offline", "tasks": {"range": found}}
    write(path / "discovered/manifest.json", manifest)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return fake_run(tmp_path / "run")


def pages(place: Path) -> tuple[str, str]:
    return place.read_text(), place.with_suffix(".md").read_text()


def test_a_full_run_tells_every_section(run):
    place = write_report([run])
    assert place == run / "report.html"
    html, _ = pages(place)
    for section in ("labels", "scores", "pictures", "discovered", "curves", "cost", "provenance"):
        assert f'<section id="{section}">' in html
        assert f'href="#{section}"' in html
    assert "recipe.yaml --out ANOTHER" in html
    assert 'class="quiet"' not in html


def test_the_verdict_and_what_discovery_was_worth_stand_first(run):
    assert delta_mtl(better(12.3), BASE) == pytest.approx(12.3)
    _, text = pages(write_report([run]))
    assert "HiTTs + discovered labels: +12.3 % delta_mtl over MTL baseline (HiTTs alone +6.1 %)" in text
    assert "Discovered labels were worth +6.2 points of delta_mtl" in text
    assert "over all 3 scores" in text


def test_page_and_markdown_hold_the_same_numbers(run):
    html, text = pages(write_report([run]))
    scores = ("44.92", "+4.92", "0.4385", "−0.0615", "33.69", "+12.3")
    for number in (*scores, "24.9 M", "250 ms", "60 min", "60.4", "83.0", "2 h 00 min"):
        assert number in html
        assert number in text
    assert "**44.92** (+4.92)" in text
    assert "67 of 200" in html


def test_a_score_with_a_dot_in_its_name_stays_whole(run):
    html, text = pages(write_report([run]))
    assert "facing within_11.25 (%) ↑" in text
    assert "within_11.25" in html


def test_names_from_files_are_escaped(run):
    html, text = pages(write_report([run]))
    assert "&lt;b&gt;" in html
    assert "&lt;i&gt;" in html
    assert "decoder: &lt;hitts&gt;" in html
    assert not re.search(r"<b></|>\s*<b>\s*</th>|<hitts>", html)
    assert "<b>" not in text


def test_the_page_loads_nothing(run):
    html, _ = pages(write_report([run]))
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    sources = re.findall(r'src="([^"]{22})', html)
    assert sources
    assert set(sources) == {"data:image/png;base64,"}


def test_pictures_have_words_and_chips(run):
    html, _ = pages(write_report([run]))
    for words in ("Input, range, image a/1", "HiTTs, classes, image b", "Discovered label, range, image b"):
        assert f'alt="{words}"' in html
    train = html[html.index("<h3>train images") :]
    assert re.search(r'scope="row">classes<span class="chip labelled">', train)
    assert re.search(r'scope="row">range<span class="chip hidden">', train)


def test_a_negative_gain_is_called_worse(tmp_path):
    _, text = pages(write_report([fake_run(tmp_path / "run", gains=(2.0, -3.1))]))
    assert "HiTTs + discovered labels: −3.1 % delta_mtl – worse than MTL baseline (HiTTs alone +2.0 %)" in text
    assert "worth −5.1 points" in text


def test_two_seeds_give_mean_and_deviation(tmp_path):
    runs = [fake_run(tmp_path / "a", (6, 12), seed=0), fake_run(tmp_path / "b", (8, 14), seed=1)]
    with pytest.raises(MultidenseError, match="place of its own"):
        write_report(runs)
    html, text = pages(write_report(runs, tmp_path / "both.html"))
    assert "HiTTs + discovered labels: +13.0 ± 1.4 % delta_mtl over MTL baseline, mean of 2 seeds" in text
    assert "(HiTTs alone +7.0 ± 1.4 %)" in text
    assert "45.20 ± 0.57" in text
    assert "45.20 ±\u00a00.57" in html
    assert "small-1 · HiTTs" in html


def test_two_runs_of_one_seed_have_no_deviation(tmp_path):
    html, _ = pages(write_report([fake_run(tmp_path / "a"), fake_run(tmp_path / "b")], tmp_path / "both.html"))
    assert "deviation over seeds:" not in html
    assert "small-0 (b) · HiTTs" in html


def test_one_results_file_is_enough(tmp_path):
    write(tmp_path / "run.json", {"trainings": [{"folder": "only"}]})
    write(tmp_path / "only/results.json", {"scores": {"classes.mIoU": 40.0, "odd.unheard": 1.0}})
    html, text = pages(write_report([tmp_path]))
    assert "40.00" in html
    assert "labels.json is not there" in html
    assert "no delta_mtl" in text


@pytest.mark.parametrize(
    "name",
    ["labels.json", "student/results.json", "student/history.csv", "discovered/manifest.json", "pictures/train/b/labels.json"],
)
@pytest.mark.parametrize("text", ["{ broken", "[1]", '{"tasks": 3, "scores": 3, "counts": 3}'])
def test_a_broken_piece_is_named_and_the_rest_is_told(run, name, text):
    (run / name).write_text(text)
    html, _ = pages(write_report([run]))
    assert f"run/{name} cannot be used" in html
    assert "MTL baseline" in html


def test_a_broken_picture_is_named(run):
    (run / "pictures/val/a__1/input.png").write_text("no picture")
    assert "a__1/input.png cannot be used" in pages(write_report([run]))[0]


def test_scores_that_are_not_numbers_leave_no_delta(run):
    write(run / "student/results.json", {"scores": dict.fromkeys(BASE)})
    _, text = pages(write_report([run]))
    assert "No delta_mtl for HiTTs + discovered labels" in text
    assert "HiTTs: +6.1 % delta_mtl over MTL baseline" in text


def test_nothing_usable_is_an_error_with_path_and_remedy(tmp_path, run):
    with pytest.raises(MultidenseError, match=r"run\.json should name the trainings.*multidense run"):
        write_report([tmp_path])
    for folder in TITLES:
        (run / folder / "results.json").unlink()
    with pytest.raises(MultidenseError, match=r"holds no scores.*train or evaluate.*student/results\.json is not there"):
        write_report([run])


def test_an_unusable_run_among_others_is_noted(tmp_path, run):
    html, _ = pages(write_report([run, tmp_path / "gone"], tmp_path / "both.html"))
    assert "gone/run.json should name the trainings" in html


def test_histories_leave_out_what_is_no_number(run):
    history = read_history(run / "mtl/history.csv")
    assert history == {
        "loss": [(1, 3), (2, 2)],
        "supervised.classes": [(1, 2.5)],
        "features.range": [(2, 0.5)],
        "val.classes.mIoU": [(2, 31)],
    }


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 40.0), (0.412, 0.413), (1e4, 3e6), (5.0, 5.0)])
def test_ticks_are_few_and_inside(low, high):
    ticks = nice_ticks(low, high, 5)
    assert len(ticks) <= 6
    assert all(low - 1e-6 <= tick <= high + 1e-6 for tick in ticks)
