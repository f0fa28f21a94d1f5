import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.config import LESSON_STAGES, Recipe
from raytrain.search import tree
from raytrain.search.chains import Chain


def entry(label, keys, costs=None):
    """A trial whose stages are named by their keys."""
    path = [keys[: length + 1] for length in range(len(keys))]
    chain = Chain("a", (), (), tuple(path), tuple(costs or [1.0] * len(keys)))
    return tree.Entry(label, chain, list(keys))


def test_shared_stages_stand_once():
    entries = [
        entry("trial 0", "abc", (0.1, 0.3, 0.6)),
        entry("trial 1", "abd", (0.1, 0.3, 0.6)),
        entry("trial 2", "ax", (0.1, 0.25)),
        entry("trial 3", "abc", (0.1, 0.3, 0.6)),
        entry("trial 4", "z", (0.125,)),
    ]
    assert tree.lines(entries) == [
        "a         0.100",
        "├─ b      0.300",
        "│  ├─ c   0.600  trial 0, trial 3",
        "│  └─ d   0.600  trial 1",
        "└─ x      0.250  trial 2",
        "z         0.125  trial 4",
    ]


def test_a_trial_may_end_where_another_goes_on():
    assert tree.lines([entry("long", "ab"), entry("short", "a")]) == [
        "a      1.000  short",
        "└─ b   1.000  long",
    ]


def test_a_tree_of_nothing_has_no_lines():
    assert tree.lines([]) == []
    assert tree.totals([]).line.startswith("0 trials cost 0.00 alone and 0.00 shared: 0 % saved")


def test_totals_count_each_stage_once():
    found = tree.totals([entry("0", "abc"), entry("1", "abd"), entry("2", "abc")])
    assert (found.trials, found.alone, found.shared) == (3, 9, 4)
    assert found.saved == pytest.approx(5 / 9)
    assert found.line == (
        "3 trials cost 9.00 alone and 4.00 shared: 56 % saved (the given recipe costs 1)"
    )


@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12))
def test_the_tree_has_a_line_for_each_different_prefix(words):
    entries = [entry(f"<{number}>", word) for number, word in enumerate(words)]
    prefixes = {word[:length] for word in words for length in range(1, len(word) + 1)}
    lines = tree.lines(entries)
    found = tree.totals(entries)
    assert len(lines) == len(prefixes) == found.shared
    assert found.alone == sum(map(len, words))
    text = "\n".join(lines)
    assert all(text.count(f"<{number}>") == 1 for number in range(len(words)))


def test_the_lesson_in_few_words():
    recipe = Recipe()
    words = [tree.stage_in_words(recipe, number) for number in range(1, 5)]
    assert words == [
        "128 px x 5, frozen, lr 0.01",
        "128 px x 5, lr 1e-05 to 0.002",
        "256 px x 5, frozen, lr 0.005",
        "256 px x 5, lr 1e-05 to 0.001",
    ]
    assert len(LESSON_STAGES) == 4


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"start_size": 32}, "32 to 64 px x 2, lr 0.1"),
        ({"freeze": 1}, "64 px x 2, 1 of 3 groups frozen, lr 0.1"),
        ({"batch_size": 8}, "64 px x 2, lr 0.1, batch 8"),
        ({"augment": {"flip": "none", "rotate": 0}}, "64 px x 2, lr 0.1, flip none, rotate 0"),
    ],
)
def test_what_a_stage_sets_is_said(stage, words):
    values = {"size": 64, "epochs": 2, "lr": 0.1} | stage
    recipe = Recipe.model_validate({"stages": [values]})
    assert tree.stage_in_words(recipe, 1) == words


def test_a_rate_that_is_found_is_not_told_as_a_number():
    assert tree.stage_in_words(Recipe(lr="auto"), 2) == "128 px x 5, lr auto"


def test_what_all_stages_share_stands_before_the_first():
    recipe = Recipe(select="3-4")
    assert tree.chain_in_words(recipe, {"train.wd": 0.02, "model.batch_norm": "fixed"}) == (
        "train.wd 0.02, model.batch_norm fixed: 256 px x 5, frozen, lr 0.005",
        "256 px x 5, lr 1e-05 to 0.001",
    )
    assert tree.chain_in_words(recipe, {})[0] == "256 px x 5, frozen, lr 0.005"
