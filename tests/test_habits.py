"""What helps others to work on the project says what is true: changelog, contributing, citation, hooks, templates."""

import ast
import re
import shlex
import tomllib
from operator import attrgetter
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

import raytrain
import raytrain.training.trained_model
from raytrain import registry

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# The headings that keepachangelog.com knows.
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
# What schema 1.2.0 of the Citation File Format requires, and what else is used here.
CITATION_NEEDS = {"cff-version", "message", "title", "authors"}
CITATION_MAY = {"type", "abstract", "version", "license", "keywords"}


def test_the_citation_has_what_its_format_requires():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert CITATION_NEEDS <= set(found) <= CITATION_NEEDS | CITATION_MAY
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert found["authors"] == PROJECT["project"]["authors"]
    assert found["version"] == PROJECT["project"]["version"]
    assert found["license"] == PROJECT["project"]["license"]


def test_the_hooks_are_the_checks_of_ci_and_fetch_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    checks = re.findall(r"^\./dev .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert [hook["entry"] for hook in hooks] == checks
    for hook in hooks:
        # Hooks with other languages make environments of their own, from the network.
        assert hook["language"] == "system" and hook["pass_filenames"] is False


def test_issue_templates_have_a_name_and_say_what_they_are_for():
    found = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md"))
    assert [path.stem for path in found] == ["bug", "feature"]
    for path in found:
        _, front, text = path.read_text().split("---\n", 2)
        assert {"name", "about", "title", "labels"} == set(yaml.safe_load(front))
        assert text.strip()
    assert (ROOT / ".github/pull_request_template.md").read_text().strip()


def test_the_changelog_knows_this_version_and_the_usual_headings():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased" and versions[1] == PROJECT["project"]["version"]
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= KINDS
    assert len(text.splitlines()) < 120


@pytest.fixture(scope="module")
def contributing():
    return (ROOT / "CONTRIBUTING.md").read_text()


def test_contributing_names_files_that_exist(contributing):
    named = re.findall(r"`((?:raytrain|tests|docs|\.ci|\.github)/[\w./-]+)`", contributing)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", contributing)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_contributing_names_tests_that_exist(contributing):
    named = set(re.findall(r"`(test_\w+)`", contributing))
    known = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        known |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    assert len(named) > 5 and named <= known


def test_contributing_names_every_marker_and_command_of_dev(contributing):
    markers = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    for marker in markers:
        assert f"`{marker.split(':')[0]}`" in contributing
    for command in ("quickstart", "test", "lint", "shell"):
        assert f"./dev {command}" in contributing
    marked = re.findall(r"^\./dev test (.+?)(?: #.*)?$", contributing, re.MULTILINE)
    for words in marked:
        paths = [word for word in shlex.split(words) if word.startswith("tests/")]
        assert all((ROOT / path).exists() for path in paths)


def test_contributing_names_the_four_modules_of_a_task(contributing):
    for room in ("data/targets", "evaluation/tasks", "tasks", "report"):
        assert f"`raytrain/{room}/`" in contributing
        for module in registry.MODULES.values():
            assert (ROOT / "raytrain" / room / f"{module}.py").exists()


def public_definitions(tree, prefix=""):
    """(name, docstring) of each public function and class of a module, and of what stands in the classes."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        yield prefix + node.name, ast.get_docstring(node)
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node, f"{node.name}.")


def test_all_that_is_public_has_a_docstring():
    found = []
    for path in sorted((ROOT / "raytrain").rglob("*.py")):
        for name, docstring in public_definitions(ast.parse(path.read_text())):
            found.append((path.name, name, docstring))
    assert len(found) > 500
    assert [(path, name) for path, name, docstring in found if not docstring] == []


@pytest.mark.parametrize("name", [*raytrain.__all__, "training.trained_model.TrainedModel"])
def test_each_entry_point_shows_an_example_of_names_that_exist(name):
    docstring = attrgetter(name)(raytrain).__doc__
    example = docstring.split("Example:", 1)[1].split("```")[1].removeprefix("python")
    tree = ast.parse(dedent(example))
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "raytrain":
            used.add(node.attr)
    assert used and used <= set(raytrain.__all__)
