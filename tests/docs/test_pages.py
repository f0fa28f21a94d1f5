"""README and docs/: every command is one of the program, every link leads somewhere, and README is short."""

import json
import re
from statistics import median, quantiles

import pages
import pytest
import yaml

from raytrain.cli.main import app
from raytrain.config import recipe_names

LANGUAGES = {"sh", "text", "yaml", "python", "{toctree}", "{eval-rst}"}
# Commands of blocks that no other test of this folder runs, and where they are run.
ELSEWHERE = {
    "./dev quickstart": "tests/distributed/test_limits.py"
    "::test_quickstart_ends_with_its_report_or_says_that_memory_is_short",
    "./dev test": ".ci/run",
    "./dev lint": ".ci/run",
    "./dev docs": ".ci/run",  # as the last step of lint
}
IN_BLOCKS = pages.all_commands()
IN_SENTENCES = [
    (path.name, code)
    for path in pages.pages()
    for code in pages.code_in_sentences(path)
    if code.startswith("raytrain ")
]


def parse(words):
    """Parses a command line as the program does, without running it."""
    app.parse_args(words, exit_on_error=False, print_error=False)


def of_raytrain(words):
    """The words behind `raytrain`, or behind the name of its job; None if it is another program."""
    if words[0] == "raytrain":
        return words[1:]
    if words[:5] == ["ray", "job", "submit", "--working-dir", "."]:
        job = re.fullmatch(r"jobs/(\w+)\.py", words[7])
        return [job[1], *words[8:]]
    return None


def test_the_page_of_the_notebook_is_the_notebook():
    notebook = json.loads((pages.ROOT / "examples" / "lesson.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    blocks = [one for one in pages.blocks(pages.page("notebook.md")) if one.language == "python"]
    # After a change: python docs/notebook.py
    assert [block.text.strip() for block in blocks] == ["".join(cell["source"]) for cell in cells]


def test_every_block_names_its_language():
    wrong = []
    for path in pages.pages():
        for block in pages.blocks(path):
            if block.language not in LANGUAGES:
                wrong.append(f"{path.name}:{block.line}: {block.language!r}")
    assert wrong == []


@pytest.mark.parametrize("command", IN_BLOCKS, ids=lambda command: command.where)
def test_a_command_of_a_block_is_one_that_the_program_takes(command):
    words = command.words
    ours = of_raytrain(words)
    if ours is not None:
        parse(ours)
        if "--config" in ours:
            name = ours[ours.index("--config") + 1]
            assert name in recipe_names() or name.endswith(".yaml")
    elif words[0] == "./dev":
        assert re.search(rf"^(\w+ \| )*{words[1]}\b", usage_of_dev(), re.M)
    elif words[0].endswith("python"):
        # Importing what parses its flags would import torch.
        script = pages.ROOT / words[1]
        if words[1:3] == ["-m", "raytrain.bench"]:
            script = pages.ROOT / "raytrain" / "bench" / "__main__.py"
        script = script.read_text()
        assert [word for word in words if word.startswith("--") and word not in script] == []
    else:
        # Of other programs only those that a page of ours explains.
        assert words[0] in ("ray", "export", "python3", ".venv/bin/pip", "RAY_worker_niceness=0")


def usage_of_dev():
    (line,) = re.findall(r'usage: \./dev (.*)"', (pages.ROOT / "dev").read_text())
    return line


@pytest.mark.parametrize(("name", "code"), IN_SENTENCES)
def test_a_command_in_a_sentence_is_one_that_the_program_takes(name, code):
    if re.search(r"[<>]", code) and "> " not in code:
        pytest.skip("stands for many commands")
    words = pages.words_of(code)[1:]
    if words[0] == "COMMAND":
        pytest.skip("stands for many commands")
    if words[-1].startswith("--") and words[-1] != "--help":
        # The flag is only named, without a value; whether it exists says another test.
        words = words[:-1]
    if any(word.startswith("-") for word in words):
        parse(words)
    else:
        # The command is only named, without what it needs.
        command, _, _ = app.parse_commands(words)
        assert command


def test_flags_in_sentences_exist():
    known = known_flags()
    wrong = []
    for path in pages.pages():
        for code in pages.code_in_sentences(path):
            for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", code):
                if flag not in known and not flag.startswith("--data.repeat."):
                    wrong.append(f"{path.name}: {flag}")
    assert wrong == []


def known_flags():
    """The flags of all commands, of `python -m raytrain.bench`, and of the scripts under tests/."""
    found = {"--help", "--version"} | flags_of_commands()
    scripts = [*pages.ROOT.glob("raytrain/bench/*.py"), *pages.ROOT.glob("tests/*/*.py")]
    for script in scripts:
        found.update(re.findall(r'"(--[\w-]+)"', script.read_text()))
    return found


def flags_of_commands():
    found = set()
    waiting = [app]
    while waiting:
        current = waiting.pop()
        for name in current:
            if not name.startswith("-"):
                waiting.append(current[name])
        if current.default_command is not None:
            for argument in current.assemble_argument_collection():
                if argument.parse and not argument.children:
                    found.update(name for name in argument.names if name.startswith("--"))
    return found


def test_every_command_is_run_by_a_test_or_says_why_not():
    left = []
    for command in IN_BLOCKS:
        runs = command.text.startswith("raytrain ") or command.text in ELSEWHERE
        if not command.not_run and not runs:
            left.append(f"{command.where}: {command.text}")
    assert left == []


def test_the_places_that_run_the_others_exist():
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert test in (pages.ROOT / file).read_text()


def test_the_page_of_the_command_line_has_every_command_and_flag(monkeypatch):
    monkeypatch.syspath_prepend(pages.DOCS)
    import command_line

    text = command_line.reference()
    assert "\nraytrain train [OPTIONS]\n" in text and "## raytrain runs prune" in text
    assert [flag for flag in flags_of_commands() if flag not in text] == []


# Other blocks


def blocks_in(language):
    found = []
    for path in pages.pages():
        found += [block for block in pages.blocks(path) if block.language == language]
    return found


@pytest.mark.parametrize("block", blocks_in("yaml"), ids=lambda b: f"{b.page}:{b.line}")
def test_a_block_of_yaml_can_be_read(block):
    assert isinstance(yaml.safe_load(block.text), dict)


def test_the_space_of_the_page_is_the_file_that_it_names():
    (shown,) = [block for block in blocks_in("yaml") if block.page == "searches.md"]
    file = (pages.DOCS / "spaces" / "planet.yaml").read_text()
    assert yaml.safe_load(shown.text) == yaml.safe_load(file)


def test_the_columns_of_history_are_those_of_the_page():
    from dataclasses import fields

    from raytrain.checkpoints.history import EpochRow

    text = (pages.DOCS / "files.md").read_text()
    names = [field.name for field in fields(EpochRow)]
    middle = names.index("scores")
    assert f"`{','.join(names[:middle])}`" in text and f"`{','.join(names[middle + 1 :])}`" in text


def test_every_exit_code_of_the_program_is_on_the_page():
    from raytrain import errors

    page = (pages.DOCS / "exit-codes.md").read_text()
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.RaytrainError):
            assert f"| {error.exit_code} |" in page


# Links


@pytest.mark.parametrize("path", pages.pages(), ids=lambda path: path.name)
def test_links_within_the_repository_lead_somewhere(path):
    wrong = []
    for target in pages.links(path):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        if not other.is_file() or (
            anchor and other.suffix == ".md" and anchor not in pages.anchors(other)
        ):
            wrong.append(target)
    assert wrong == []


def test_every_page_is_in_the_table_of_contents():
    listed = set()
    for block in pages.blocks(pages.DOCS / "index.md"):
        if block.language == "{toctree}":
            listed |= {line for line in block.text.splitlines() if line and line[0] != ":"}
    assert listed == {path.stem for path in pages.DOCS.glob("*.md")} - {"index"}


def test_pictures_are_small_and_all_of_them_are_shown():
    pictures = sorted((pages.DOCS / "pictures").iterdir())
    text = "".join(path.read_text() for path in pages.pages())
    assert pictures and all(path.stat().st_size < 250_000 for path in pictures)
    assert [path.name for path in pictures if f"pictures/{path.name}" not in text] == []


def test_what_leads_outside_can_be_listed():
    found = {address for path in pages.pages() for address in pages.outside(path)}
    assert "https://www.kaggle.com/settings" in found


# README


def test_readme_is_short_and_so_are_its_sentences():
    readme = pages.ROOT / "README.md"
    lengths = [len(sentence.split()) for sentence in pages.sentences(readme)]
    assert len(readme.read_text().splitlines()) <= 150
    assert len(lengths) > 30
    assert median(lengths) <= 16 and quantiles(lengths, n=10)[-1] <= 30


def test_sentences_are_counted_as_a_reader_counts_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Not one\n\nOne two three. Four `five six`\nseven!\n\n- [eight nine](x.md) ten\n- eleven\n\n"
        "| a | table |\n\n```sh\nno sentence\n```\n"
    )
    assert pages.sentences(page) == [
        "One two three.",
        "Four CODE seven!",
        "eight nine ten",
        "eleven",
    ]
