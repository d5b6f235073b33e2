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
    manifest["rules"] = {"range": "share 0.6"}
    write(path / "discovered/manifest.json", manifest)
    write(path / "discovered/quality.json", {"range": quality()})
    for folder in TITLES:
        told = {
            part: {"classes.mIoU": value, "range.absErr": None} for part, value in (("labelled", 55.5), ("unlabelled", 51.1))
        }
        write(path / folder / "training_images.json", told)
    return path


def quality(precision: float | None = 0.8125) -> dict:
    """What a judgement of one task holds."""
    curve = [{"coverage": c, "precision": p, "threshold": t} for c, p, t in ((0.2, 0.95, 0.9), (0.6, 0.8, 0.5), (1, 0.706, 0))]
    bins = [{"confidence": c, "accuracy": a, "share": 0.5} for c, a in ((0.25, 0.3), (0.75, 0.65))]
    row = {"pixels": 300, "kept": 0.5, "precision": precision, "true_pixels": 100, "recall": None}
    told = {"images": 134, "pixels": 400, "coverage": 0.599, "precision": precision, "accuracy": 0.706, "tolerance": 0.1}
    told |= {"ece": 0.0765, "ece_by_share": 0.0772, "curve": curve, "reliability": bins, "reliability_by_share": bins}
    return told | {"classes": {"<u>": row, "far": row | {"pixels": 100, "precision": None}}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return fake_run(tmp_path / "run")


def pages(place: Path) -> tuple[str, str]:
    return place.read_text(), place.with_suffix(".md").read_text()


def test_a_full_run_tells_every_section(run):
    place = write_report([run])
    assert place == run / "report.html"
    html, _ = pages(place)
    for section in ("labels", "scores", "pictures", "discovered", "quality", "curves", "cost", "provenance"):
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
    for number in (*scores, "24.9 M", "250 ms", "60 min", "60.4", "83.0", "2 h 00 min", "51.10", "−4.40"):
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
    [
        "labels.json",
        "student/results.json",
        "student/history.csv",
        "student/training_images.json",
        "discovered/manifest.json",
        "discovered/quality.json",
        "pictures/train/b/labels.json",
    ],
)
@pytest.mark.parametrize("text", ["{ broken", "[1]", '{"tasks": 3, "scores": 3, "counts": 3, "labelled": 3}'])
def test_a_broken_piece_is_named_and_the_rest_is_told(run, name, text):
    (run / name).write_text(text)
    html, _ = pages(write_report([run]))
    assert f"run/{name} cannot be used" in html
    assert "MTL baseline" in html


def test_a_broken_picture_is_named(run):
    (run / "pictures/val/a__1/input.png").write_text("no picture")
    assert "a__1/input.png cannot be used" in pages(write_report([run]))[0]


def quality_section(html: str) -> str:
    start = html.index('<section id="quality">')
    return html[start : html.index("</section>", start)]


def test_the_quality_of_discovered_labels_is_told(run):
    html, text = pages(write_report([run]))
    section = quality_section(html)
    for number in ("59.9", "81.2", "+10.7", "70.6", "7.7", "75.0", "50.0", "share 0.6", "&lt;u&gt;"):
        assert number in section
        assert number.replace("&gt;", ">") in text[text.index("## How good") :]
    assert "| far | 25.0 | 50.0 | – | 50.0 | – |" in text
    assert "HiTTs: 81.2 % precision at 59.9 % coverage, 70.6 % of everything" in section
    assert "HiTTs: ECE 7.6 %" in section
    assert "| range | 95.0 | 80.0 | 80.0 | 70.6 | 70.6 |" in text
    assert section.count("HiTTs: labelled") == 1
    assert "**" not in text[text.index("### Labelled and unlabelled") : text.index("## Cost")]


def test_the_dot_of_a_precision_plot_stands_where_the_labels_were_kept(run):
    section = quality_section(pages(write_report([run]))[0])
    plot = section[section.index("<polyline") : section.index("</svg>")]
    (x, y), *others = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', plot)
    assert not others
    left, right, top, bottom = 56, 348 - 14, 10, 200 - 28
    assert float(x) == pytest.approx(left + 0.599 * (right - left), abs=0.1)
    assert float(y) == pytest.approx(bottom - (0.8125 - 0.6) / 0.4 * (bottom - top), abs=0.1)  # the axis begins at 60 %
    points = [tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]+)"', plot)[1].split()]
    assert [point[0] for point in points] == pytest.approx([left + c * (right - left) for c in (0.2, 0.6, 1)], abs=0.1)


def test_a_run_without_judged_labels_has_no_such_section(run):
    for path in [run / "discovered/quality.json", *run.glob("*/training_images.json")]:
        path.unlink()
    html, text = pages(write_report([run]))
    for words in ('id="quality"', "#quality"):
        assert words not in html
    assert "How good" not in text


def test_labels_of_which_none_was_kept_have_no_dot_and_no_precision(run):
    write(run / "discovered/quality.json", {"range": quality(None) | {"coverage": 0.0}})
    section = quality_section(pages(write_report([run]))[0])
    assert "<circle" not in section[section.index("<polyline") : section.index("</svg>")]
    assert "HiTTs: – % precision at 0.0 % coverage" in section


def test_several_discoveries_share_their_plots(run):
    write(run / "discovered-student/quality.json", {"range": quality(0.9), "classes": quality(0.7)})
    manifest = json.loads((run / "discovered/manifest.json").read_text())
    write(run / "discovered-student/manifest.json", manifest | {"rules": {"range": "balanced 0.6"}})
    section = quality_section(pages(write_report([run]))[0])
    for label in ("HiTTs, discovered", "HiTTs, discovered-student"):
        assert f"<h3>{label}</h3>" in section
    assert "balanced 0.6" in section
    plots = re.findall(r"<figure class=.plot.>.*?</figure>", section, re.DOTALL)
    assert len(plots) == 4
    assert [len(re.findall("<g class=.c[12]", plot)) for plot in plots] == [2, 1, 2, 1]


def test_two_runs_are_judged_under_their_names(tmp_path):
    runs = [fake_run(tmp_path / "a", seed=0), fake_run(tmp_path / "b", seed=1)]
    section = quality_section(pages(write_report(runs, tmp_path / "both.html"))[0])
    assert "<h3>small-0 · HiTTs</h3>" in section
    assert "small-1 · MTL baseline: unlabelled" in section


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


def curves_section(html: str) -> str:
    start = html.index('<section id="curves">')
    return html[start : html.index("</section>", start)]


def test_weights_that_move_have_a_plot_with_a_line_for_each_task(run):
    courses = {"mtl": ("1,1", "1,1"), "hitts": ("1,1", "1.5,0.5"), "student": (",0.25", ",0.75")}
    for folder, (first, second) in courses.items():
        header = "epoch,step,lr,loss,weight.classes,weight.<range>"
        write(run / folder / "history.csv", f"{header}\n1,9,0.1,3,{first}\n2,18,0.1,2,{second}\n")
    section = curves_section(pages(write_report([run]))[0])
    assert "Loss term: weight" not in section
    figures = section[section.index("<h3>Weights of the losses</h3>") :]
    found = re.findall(r"<figcaption>(.*?)</figcaption>.*?</figure>", figures, re.DOTALL)
    assert found == ["HiTTs", "HiTTs + discovered labels"], "the weights of the other stay as they are"
    plots = figures.split("<figure")[1:]
    assert re.findall(r"<title>(.*?)</title>", plots[0]) == ["classes: 1.5 at epoch 2", "&lt;range&gt;: 0.5 at epoch 2"]
    assert re.findall(r"<title>(.*?)</title>", plots[1]) == ["&lt;range&gt;: 0.75 at epoch 2"]
    legend = dict(re.findall(r'<li class="(c\d) d0">.*</svg>(.*?)</li>', figures))
    assert legend == {"c1": "classes", "c2": "&lt;range&gt;"}
    assert re.findall(r'<g class="(c\d)', plots[1]) == ["c2"], "a task has its colour in every plot"


def test_runs_without_weights_that_move_have_no_figure_of_them(run):
    header = "epoch,step,lr,loss,weight.classes"
    write(run / "mtl/history.csv", f"{header}\n1,9,0.1,3,1\n2,18,0.1,2,1\n")
    assert "Weights of the losses" not in pages(write_report([run]))[0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 40.0), (0.412, 0.413), (1e4, 3e6), (5.0, 5.0)])
def test_ticks_are_few_and_inside(low, high):
    ticks = nice_ticks(low, high, 5)
    assert len(ticks) <= 6
    assert all(low - 1e-6 <= tick <= high + 1e-6 for tick in ticks)
