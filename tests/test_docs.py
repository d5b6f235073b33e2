"""The documentation: its examples run, its links lead somewhere, its commands and settings exist."""

import re
import runpy
from contextlib import suppress
from pathlib import Path

import pytest

from multidense.cli import COMMANDS, main
from multidense.config import load_recipe
from multidense.data import Folder
from multidense.models import DECODERS
from multidense.tasks import TASKS

HOUSE = Path(__file__).parents[1]
PAGES = {page.name: page.read_text(encoding="utf-8") for page in [HOUSE / "README.md", *sorted((HOUSE / "docs").glob("*.md"))]}
ADDITIONS = ("add_a_task", "add_a_decoder", "add_a_dataset")


def place(page):
    return HOUSE if page == "README.md" else HOUSE / "docs"


def blocks(page, kind):
    """The fenced blocks of a page whose first line says so."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def slug(heading):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def said_by_help(words, capsys):
    with suppress(SystemExit):
        main([*words, "--help"])
    return capsys.readouterr().out


@pytest.fixture
def kept_tables():
    """Examples add to the tables of names; here they are taken out again."""
    before = [(table, dict(table)) for table in (TASKS, DECODERS)]
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)


# Examples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADDITIONS)
def test_the_example_runs_and_prints_scores(name, capsys, kept_tables):
    runpy.run_path(str(HOUSE / "examples" / f"{name}.py"), run_name="__main__")
    assert re.search(r"^\w+\.\w+ +[\d.]+", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("name", ADDITIONS)
def test_the_page_quotes_the_example_as_it_stands(name):
    page = f"{name.replace('_', '-')}.md"
    assert (HOUSE / "examples" / f"{name}.py").read_text(encoding="utf-8") in blocks(page, "python")


@pytest.mark.parametrize("page", [name for name in PAGES if blocks(name, "python runnable")])
def test_runnable_blocks_run(page):
    for block in blocks(page, "python runnable"):
        exec(compile(block, page, "exec"), {"__name__": "block"})


def test_the_guides_description_and_recipe_read_the_example_folder(tmp_path, monkeypatch, capsys):
    example = HOUSE / "examples" / "half_labelled_folder.py"
    root = tmp_path / "my-rooms"
    runpy.run_path(str(example))["make"](root, count=8, size=(32, 48))
    (root / "description.yaml").write_text(blocks("guide.md", "yaml description")[0], encoding="utf-8")
    (root / "recipe.yaml").write_text(blocks("guide.md", "yaml recipe")[0], encoding="utf-8")
    recipe = load_recipe(root / "recipe.yaml")
    train, val = (Folder(recipe.data.description, split, recipe.task_objects()) for split in ("train", "val"))
    assert {len(train.annotated(index)) for index in range(len(train))} == {1}
    assert {len(val.annotated(index)) for index in range(len(val))} == {3}
    monkeypatch.chdir(tmp_path)
    main(["data", "show", "my-rooms/description.yaml", "--out", "look.png", "--count", "2"])
    main(["data", "label", "my-rooms/description.yaml", "--setting", "full", "--out", "labels.csv"])
    assert (tmp_path / "look.png").is_file()
    assert "6 images" in capsys.readouterr().out


def test_the_readmes_lines_are_the_doors():
    """tests/test_door.py runs them smaller; here only that they have not drifted apart."""
    door = (HOUSE / "tests" / "test_door.py").read_text(encoding="utf-8")
    readme = next(block for block in blocks("README.md", "python") if "md.discover" in block)
    for line in readme.splitlines():
        call = re.match(r"(?:\w+ = |return |print\()?((?:md|partial)\.\w+|Rooms)\(", line.strip())
        assert call is None or call[0] in door, line


# Links and commands ---------------------------------------------------------------------------------------------------


def links():
    for page, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", prose):
            if not link.startswith(("http://", "https://", "mailto:")):
                yield page, link


@pytest.mark.parametrize(("page", "link"), sorted(set(links())))
def test_the_link_leads_somewhere(page, link):
    file, _, anchor = link.partition("#")
    target = place(page) / file if file else place(page) / page
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in [slug(heading) for heading in headings]


def commands():
    """(page, words, options) of every command that a page quotes in code."""
    for page, text in PAGES.items():
        fenced = [
            line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()
        ]
        indented = re.findall(r"^    (.+)$", text, re.MULTILINE)
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        for line in [*fenced, *indented, *inline]:
            for command, rest in re.findall(r"(?:^|[ /`])multidense ([a-z]+)\b([^#`]*)", line):
                if command == "import" or line.lstrip().startswith(("import ", "from ", ">>>", "#")):
                    continue
                word = re.match(r" ([a-z]+)\b", rest) if command == "data" else None
                yield page, (command, word[1]) if word else (command,), tuple(re.findall(r"(?<!\S)--[\w.]+", rest))


@pytest.mark.parametrize(
    ("page", "words", "options"), sorted(set(commands())), ids=lambda part: " ".join(part) if isinstance(part, tuple) else part
)
def test_the_command_and_its_options_exist(page, words, options, capsys):
    assert words[0] in COMMANDS
    said = said_by_help(list(words), capsys)
    if words[0] == "train":
        said += said_by_help(["run"], capsys)
    for option in options:
        assert re.search(rf"(?<![\w.-]){re.escape(option)}(?![\w.-])", said), (
            f"{option} is not in the help of {' '.join(words)}"
        )


def test_every_page_is_named_by_the_readme_or_another_page():
    linked = {link.partition("#")[0].rpartition("/")[2] for _, link in links()}
    named = {page for page in PAGES for text in PAGES.values() if page.removesuffix(".md") in re.split(r"[\s,·]+", text)}
    assert set(PAGES) - {"README.md"} <= linked | named


def test_pages_name_no_place_of_one_machine():
    for page, text in PAGES.items():
        assert not re.search(r"/(?:home|root|work|tmp|mnt)/", text), page
