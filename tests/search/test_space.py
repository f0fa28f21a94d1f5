"""Spaces are written as users write them: YAML over a recipe of two stages."""

import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain.config import Recipe, load_recipe, recipe_names, validate
from raytrain.errors import ConfigError
from raytrain.search import default, refusals, space_file
from raytrain.search.chains import Axes, Axis, Chain
from raytrain.search.space import GIVEN, Draw

RECIPE = {
    "model": {"arch": "resnet18", "weights": "none"},
    "data": {"augment": {"flip": "horizontal", "rotate": 0}},
    "train": {"batch_size": 16, "wd": 0.01},
    "stages": [
        {"size": 32, "epochs": 2, "freeze": True, "lr": 0.01},
        {"size": 64, "epochs": 2, "freeze": False, "lr": [1e-4, 0.002]},
    ],
}
LISTS = """
train.wd: {choice: [0.003, 0.01, 0.03]}
stages:
  choice:
    lesson:
      - {size: 32, epochs: 2, freeze: true, lr: {choice: [0.005, 0.01, 0.02]}}
      - {size: 64, epochs: 2, lr: {loggrid: [5e-4, 8e-3, 5], ratio: 0.05}, start_size: {choice: [null, 32]}}
    short:
      - {size: 64, epochs: {randint: [3, 7]}, lr: 1e-3, augment: {rotate: {grid: [0, 20, 3]}}}
at_most: {cost: 1.5}
"""


def recipe(**changes):
    return validate(RECIPE | changes, "test")


def read(text, **changes):
    return space_file.read(yaml.safe_load(text) or {}, recipe(**changes))


def by_hand(stages=None, **changes):
    """A recipe as a person writes it; sections of `changes` are laid over those of RECIPE."""
    values = {**RECIPE, **({"stages": stages} if stages else {})}
    for section, fields in changes.items():
        values[section] = RECIPE[section] | fields
    return Recipe.model_validate(values)


@pytest.fixture(scope="module")
def lists():
    return read(LISTS)


# What is drawn


def test_each_draw_gives_the_recipe_that_a_person_would_write(lists):
    stages = RECIPE["stages"]
    draw = Draw(
        "lesson",
        {
            "train.wd": 0.03,
            "stages.1.lr": 0.02,
            "stages.2.lr": [0.0002, 0.004],
            "stages.2.start_size": 32,
        },
    )
    written = [stages[0] | {"lr": 0.02}, stages[1] | {"lr": [2e-4, 0.004], "start_size": 32}]
    assert lists.recipe(draw) == by_hand(written, train={"wd": 0.03})
    draw = Draw("short", {"train.wd": 0.003, "stages.1.epochs": 5, "stages.1.augment.rotate": 20})
    # The rest of its augmentation is the recipe's.
    augment = {"flip": "horizontal", "rotate": 20}
    written = [{"size": 64, "epochs": 5, "lr": 0.001, "augment": augment}]
    assert lists.recipe(draw) == by_hand(written, train={"wd": 0.003})


def test_a_value_is_drawn_only_when_its_list_was_chosen(lists):
    rng = np.random.default_rng(0)
    drawn = [lists.draw(rng) for _ in range(400)]
    assert {draw.schedule for draw in drawn} == {"lesson", "short"}
    for draw in drawn:
        fields = {"train.wd", "stages.1.lr", "stages.2.lr", "stages.2.start_size"}
        if draw.schedule == "short":
            fields = {"train.wd", "stages.1.epochs", "stages.1.augment.rotate"}
        assert set(draw.values) == fields


def test_axes_and_coordinates_make_a_chain(lists):
    assert lists.axes == Axes(
        (Axis("train.wd"),),
        {
            "lesson": (
                (Axis("stages.1.lr"),),
                (Axis("stages.2.lr"), Axis("stages.2.start_size", ordered=False)),
            ),
            "short": ((Axis("stages.1.epochs"), Axis("stages.1.augment.rotate")),),
        },
    )
    draw = Draw(
        "lesson",
        {
            "train.wd": 0.01,
            "stages.1.lr": 0.02,
            "stages.2.lr": [0.000025, 0.0005],
            "stages.2.start_size": 32,
        },
    )
    chain = Chain(*lists.coordinates(draw), keys=("a", "b"), costs=(1.0, 1.0))
    assert (chain.schedule, chain.shared, chain.stages) == ("lesson", (0.5,), ((1.0,), (0.0, 1.0)))


def test_equal_seeds_draw_the_same(lists):
    draws = []
    for _ in range(2):
        rng = np.random.default_rng(7)
        draws.append([lists.draw(rng).text for _ in range(20)])
    assert draws[0] == draws[1] and len(set(draws[0])) > 15


def test_a_draw_goes_through_json(lists):
    draw = lists.draw(np.random.default_rng(0))
    back = Draw.from_json(json.loads(json.dumps(draw.to_json())))
    assert back == draw and back.text == draw.text
    assert draw.to_json().keys() == {"schedule", "values"}


def test_the_number_of_draws(lists):
    assert lists.size == 3 * (3 * 5 * 2 + 4 * 3)
    assert lists.most_cost == 1.5
    assert read("train.wd: {choice: [0.1, 0.2]}\nstages.1.lr: {uniform: [0.1, 0.2]}").size is None


def test_all_draws_of_a_finite_space_are_met():
    space = read("train.wd: {choice: [0.01, 0.02]}\nstages.1.epochs: {randint: [1, 4]}")
    rng = np.random.default_rng(0)
    assert len({space.draw(rng).text for _ in range(200)}) == space.size == 6


def test_paths_lead_into_the_own_list_of_the_recipe():
    space = read("stages.2.lr: {loguniform: [1e-4, 1e-2]}\nstages.1.lr: {choice: [0.1, 0.2]}")
    rng = np.random.default_rng(0)
    draw = space.draw(rng)
    found = space.recipe(draw)
    assert draw.schedule == GIVEN
    assert [stage.lr for stage in found.stages] == [
        draw.values["stages.1.lr"],
        draw.values["stages.2.lr"],
    ]
    # Earlier stages stand first, however they are written.
    assert [axes[0].path for axes in space.axes.stages[GIVEN]] == ["stages.1.lr", "stages.2.lr"]


def test_one_rate_of_a_pair_is_drawn():
    space = read("stages.2.lr.1: {choice: [1e-5, 1e-6]}")
    draw = Draw(GIVEN, {"stages.2.lr.1": 1e-6})
    assert space.recipe(draw).stages[1].lr == (1e-6, 0.002)
    written = "stages: {choice: {a: [{size: 32, epochs: 1, lr: [{choice: [1e-5, 1e-6]}, 0.1]}]}}"
    draw = Draw("a", {"stages.1.lr.1": 1e-6})
    assert read(written).recipe(draw).stages[0].lr == (1e-6, 0.1)


def test_lists_without_names_are_counted_and_share_paths():
    space = read(
        """
        stages:
          choice:
            - [{size: 32, epochs: 1, lr: 0.01}]
            - [{size: 32, epochs: 2, lr: 0.01}, {size: 64, epochs: 4, lr: 0.01}]
        stages.1.lr: {loguniform: [0.001, 0.1]}
        """
    )
    rng = np.random.default_rng(0)
    lengths = {}
    for _ in range(50):
        draw = space.draw(rng)
        found = space.recipe(draw)
        lengths[draw.schedule] = len(found.stages)
        assert found.stages[0].lr == draw.values["stages.1.lr"]
    assert lengths == {"1": 1, "2": 2}


def test_fields_may_be_nested_as_in_a_recipe():
    nested = read("train: {wd: {choice: [0.1, 0.2]}}\ndata: {augment: {rotate: {uniform: [0, 9]}}}")
    flat = read("train.wd: {choice: [0.1, 0.2]}\ndata.augment.rotate: {uniform: [0, 9]}")
    assert nested == flat


def test_a_group_of_fields_is_laid_over_the_recipe():
    """Case: rotate: 0 of the recipe was 10 again, the lesson's."""
    space = read("data.augment: {choice: [{flip: none}, {flip: dihedral, zoom: 1.2}]}")
    for value in ({"flip": "none"}, {"flip": "dihedral", "zoom": 1.2}):
        found = space.recipe(Draw(GIVEN, {"data.augment": value}))
        assert found == by_hand(data={"augment": RECIPE["data"]["augment"] | value})
    written = "stages.1.augment: {choice: [{flip: none}, {zoom: 1.2}]}"
    augment = (
        read(written).recipe(Draw(GIVEN, {"stages.1.augment": {"flip": "none"}})).stages[0].augment
    )
    assert (augment.flip, augment.rotate) == ("none", 0)


def test_a_list_without_a_group_of_fields_takes_each_choice_whole():
    space = read(
        """
        stages: {choice: {a: [{size: 32, epochs: 1, lr: 0.1,
                               augment: {choice: [{flip: none, zoom: 2}, {rotate: 5}]}}]}}
        """
    )
    augment = space.recipe(Draw("a", {"stages.1.augment": {"rotate": 5}})).stages[0].augment
    assert (augment.flip, augment.zoom, augment.rotate) == ("horizontal", 1.05, 5)


def test_a_whole_stage_may_be_drawn_in_part():
    space = read("stages.2: {choice: [{freeze: 1}, {size: 96, epochs: 3}]}")
    stage = space.recipe(Draw(GIVEN, {"stages.2": {"size": 96, "epochs": 3}})).stages[1]
    assert stage == by_hand().stages[1].model_copy(update={"size": 96, "epochs": 3})
    assert [len(axes) for axes in space.axes.stages[GIVEN]] == [0, 1]


def test_numbers_by_label_are_replaced_as_a_whole():
    space = read("data.repeat: {choice: [{}, {mine: 4, 7: 2}]}", data={"repeat": {"road": 3}})
    assert space.recipe(Draw(GIVEN, {"data.repeat": {}})).data.repeat == {}
    draws = {space.draw(np.random.default_rng(seed)).text for seed in range(20)}
    assert {Draw.from_json(json.loads(text)).text for text in draws} == draws and len(draws) == 2


def test_a_search_of_some_stages_draws_in_these():
    space = read("stages.2.lr: {choice: [0.001, 0.002]}", select="2")
    assert [[axis.path for axis in axes] for axes in space.axes.stages[GIVEN]] == [["stages.2.lr"]]
    assert space.coordinates(space.draw(np.random.default_rng(0))).stages in [((0.0,),), ((1.0,),)]
    with pytest.raises(ConfigError, match="only the stages 2 to 2 are trained"):
        read("stages.1.lr: {choice: [0.001, 0.002]}", select="2")
    with pytest.raises(ConfigError, match="--stages 2 selects from one list"):
        read("stages: {choice: [[{size: 32, epochs: 1, lr: 0.1}]]}", select="2")


# Neighbours, places


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_draws_and_their_neighbours_lie_in_the_space(lists, seed):
    rng = np.random.default_rng(seed)
    draw = lists.draw(rng)
    for _ in range(5):
        near = lists.near(draw, rng)
        assert near.text != draw.text
        for found in (draw, near):
            assert lists.coordinates(found) is not None
            assert lists.locate(lists.recipe(found)).text == found.text
        draw = near


def test_each_field_of_a_neighbour_moves_half_the_time(lists):
    rng = np.random.default_rng(0)
    draw = lists.draw(rng)
    counts = dict.fromkeys(draw.values, 0)
    same_list = 0
    total = 2000
    for _ in range(total):
        near = lists.near(draw, rng)
        if near.schedule == draw.schedule:
            same_list += 1
            for path, value in draw.values.items():
                counts[path] += near.values[path] != value
        else:
            assert near.values["train.wd"] == draw.values["train.wd"]
    assert 0.07 < 1 - same_list / total < 0.13
    # At least one moves: with n fields, each does in 1/2 + 1/2^n/n of the neighbours.
    expected = 0.5 + 0.5 ** len(counts) / len(counts)
    for count in counts.values():
        assert count / same_list == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(same_list))


def test_a_neighbour_with_another_list_keeps_what_both_draw():
    space = read(
        """
        stages:
          choice:
            long:
              - {size: 32, epochs: 1, lr: {loguniform: [0.001, 0.1]}}
              - {size: 64, epochs: 1, lr: {choice: [0.1, 0.2]}}
            short: [{size: 32, epochs: 1, lr: {loguniform: [0.001, 0.1]}}]
        """
    )
    rng = np.random.default_rng(0)
    draw = Draw("short", {"stages.1.lr": 0.0123})
    others = [
        near for near in (space.near(draw, rng) for _ in range(300)) if near.schedule == "long"
    ]
    assert others and all(near.values["stages.1.lr"] == 0.0123 for near in others)


def test_a_space_with_a_single_value_in_one_list_has_neighbours():
    space = read(
        "stages: {choice: [[{size: 32, epochs: 1, lr: 0.1}], [{size: 64, epochs: 1, lr: 0.1}]]}"
    )
    rng = np.random.default_rng(0)
    assert {space.near(Draw("1"), rng).schedule for _ in range(100)} == {"1", "2"}


def test_the_given_recipe_is_found_in_its_space(lists):
    draw = lists.given_draw()
    assert draw.schedule == "lesson"
    assert draw.values == {
        "train.wd": 0.01,
        "stages.1.lr": 0.01,
        "stages.2.lr": [0.0001, 0.002],
        "stages.2.start_size": None,
    }
    assert lists.recipe(draw) == recipe()


def test_a_recipe_that_trains_alike_is_found(lists):
    stages = [RECIPE["stages"][0] | {"freeze": 2}, RECIPE["stages"][1] | {"batch_size": 16}]
    assert lists.locate(recipe(stages=stages)).text == lists.given_draw().text
    stages = [RECIPE["stages"][0] | {"name": "head"}, RECIPE["stages"][1]]
    assert lists.locate(recipe(stages=stages)).text == lists.given_draw().text


def test_stages_of_a_list_keep_their_names():
    space = read(LISTS.replace("{size: 32,", "{name: head, size: 32,"))
    assert space.recipe(space.given_draw()).stage_names == ("head", "stage-1-64")
    assert space.size == read(LISTS).size


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"batch_size": 16, "wd": 0.02}},
        {"train": {"batch_size": 16, "wd": 0.01, "ema": 0.9}},
        {"stages": RECIPE["stages"][:1]},
        {"stages": [RECIPE["stages"][0] | {"freeze": 1}, RECIPE["stages"][1]]},
        {"stages": [RECIPE["stages"][0], RECIPE["stages"][1] | {"lr": [2e-4, 0.002]}]},
    ],
)
def test_other_recipes_lie_outside(lists, changes):
    assert lists.locate(recipe(**changes)) is None


def test_a_given_recipe_outside_the_space_is_a_baseline():
    space = read("train.wd: {choice: [0.1, 0.2]}")
    draw = space.given_draw()
    assert draw == Draw(GIVEN, {})
    assert space.coordinates(draw) is None and space.recipe(draw) == recipe()


def test_a_choice_written_in_part_is_found():
    space = read(
        "data.augment: {choice: [{flip: none}, {flip: horizontal}]}\ntrain.loss: {choice: [null]}"
    )
    assert space.given_draw().values == {"data.augment": {"flip": "horizontal"}, "train.loss": None}


# Trials of one's own


def test_a_trial_of_ones_own_inside_the_space_is_a_draw(lists):
    draw = lists.tried("train.wd=3e-2 stages.2.lr=2e-4,0.004")
    assert draw.schedule == "lesson" and lists.coordinates(draw) is not None
    assert lists.recipe(draw) == by_hand(
        [RECIPE["stages"][0], RECIPE["stages"][1] | {"lr": [2e-4, 0.004]}], train={"wd": 0.03}
    )


def test_a_trial_of_ones_own_need_not_lie_in_the_space(lists):
    draw = lists.tried("train.wd=0.02 model.dropout=0.3")
    assert lists.coordinates(draw) is None
    found = lists.recipe(Draw.from_json(json.loads(draw.text)))
    assert found == by_hand(train={"wd": 0.02}, model={"dropout": 0.3})


def test_a_trial_of_ones_own_chooses_a_list(lists):
    draw = lists.tried("stages=short stages.1.epochs=3")
    assert draw.schedule == "short"
    # The median of what is not given.
    assert draw.values["stages.1.augment.rotate"] == 10
    assert lists.recipe(draw).stages[0].epochs == 3
    assert lists.coordinates(draw) is not None


def test_a_value_with_blanks_stands_in_quotes(lists):
    found = lists.recipe(lists.tried('"data.augment={flip: none, zoom: 2}" train.wd=0.5'))
    assert found == by_hand(
        data={"augment": {"flip": "none", "rotate": 0, "zoom": 2}}, train={"wd": 0.5}
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "--try is empty"),
        ("train.wd", "--try.*PATH=VALUE"),
        ("train.wd=0.1 train.wd=0.2", "--try train.wd is given twice"),
        ("train.wd=7", "--try 'train.wd=7': train.wd = 7: Input should be less than 1"),
        ("train.wb=0.1", 'Did you mean "train.wd"'),
        ("stages.3.lr=0.1", "the recipe has 2 stages"),
        ("stages.0.lr=0.1", "count from 1"),
        ("stages=lessen", 'no list of stages "lessen". Did you mean "lesson"'),
        ("num_workers=2", "--try sets num_workers, which is the same for all trials"),
        ("'train.wd=1", "a quote that does not end"),
        ("init_from=s3://KEY:S3CRET@bucket/run", "the keys of a URI"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(lists, text, sentence):
    with pytest.raises(ConfigError, match=f"(?s){sentence}") as caught:
        lists.tried(text)
    assert "S3CRET" not in str(caught.value)


def test_found_rates_cannot_be_tried():
    space = read("train.wd: {choice: [0.1, 0.2]}", lr="auto")
    with pytest.raises(ConfigError, match=r"--try sets stages.1.lr, and lr: auto replaces it"):
        space.tried("stages.1.lr=0.1")


# What is refused


A = "stages: {choice: {a: [{size: 32, epochs: 1, lr: %s}]}}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        # Names of stages
        ("stages.1.name: {choice: [a, b]}", "draws stages.1.name, which is the same for all"),
        (
            "stages: {choice: {a: [{size: 32, epochs: 1, lr: 0.1}], "
            "b: [{size: 32, epochs: 1, lr: 0.1, name: c}]}}",
            "the lists a and b of the space are equal",
        ),
        (
            A % "0.1, name: last" + "\ntrain.wd: {choice: [0.1, 0.2]}",
            "list a: stages.1.name = 'last': a name that is that of another checkpoint",
        ),
        (
            "stages.1.size: {choice: [32, 64]}\nstages: {choice: {a: [{size: 32, epochs: 1, lr: 1}, "
            "{size: 32, epochs: 1, lr: 0.1, name: stage-3-64}]}}",
            'draws sizes, and its stage 2 has the name "stage-3-64"',
        ),
        # Nothing to draw
        ("", "nothing is searched: the space draws no field"),
        ("{}", "nothing is searched: the space draws no field"),
        ("at_most: {cost: 2}", "nothing is searched"),
        ("train.wd: {choice: [0.1]}", "nothing is searched: each field.*a single value"),
        ("train.wd: {choice: []}", "the space draws train.wd from an empty choice"),
        (
            "stages.1.epochs: {randint: [2, 2]}",
            "stages.1.epochs by randint .2, 2.*upper end.*exclusive",
        ),
        ("stages: {choice: {}}", "no list of stages to draw"),
        ("stages: {choice: [[]]}", "the list 1 of the space is .., and not a list of stages"),
        # Keys
        ("5: {choice: [1]}", "the key 5, which is not the path of a field"),
        ('"": {choice: [0.1]}', "the key '', which is not the path of a field"),
        ("train: {5: {choice: [1]}}", "the key 5, which"),
        (
            "train.batch-size: {choice: [8, 16]}",
            'no field "train.batch-size". Did you mean "train.batch_size"',
        ),
        ('"train.wd ": {choice: [0.1]}', 'no field "train.wd ". Did you mean "train.wd"'),
        ("train.wd.x: {choice: [0.1, 0.2]}", 'no field "train.wd.x"'),
        ("stages.0.lr: {choice: [0.1, 0.2]}", "count from 1"),
        ("stages.3.lr: {choice: [0.1, 0.2]}", '"stages.3.lr" names the stage 3.*has 2 stages'),
        ("train.wd: {choice: [1]}\ntrain: {wd: {choice: [1]}}", "the space draws train.wd twice"),
        (
            "train: {choice: [{wd: 0.1}, {wd: 0.2}]}\ntrain.wd: {choice: [1, 2]}",
            "draws train and train.wd",
        ),
        # Values
        ("train.wd: {choice: [0.01, 7]}", "the space: train.wd = 7: Input should be less than 1"),
        ("train.wd: {uniform: [0.01, 7]}", "the space: train.wd = 7: Input should be less than 1"),
        (
            "train.wd: {uniform: [-0.01, 0.1]}",
            "the space: train.wd = -0.01: .*greater than or equal to 0",
        ),
        (
            "train.batch_size: {randint: [1, 9]}",
            "the space: train.batch_size = 1: .*greater than or equal to 2",
        ),
        ("train.batch_size: {grid: [16, 32, 4]}", "train.batch_size = 21.3333: .*valid integer"),
        (
            "stages.1.epochs: {uniform: [1, 3]}",
            "stages.1.epochs takes whole numbers.*randint: .1, 4",
        ),
        ("train.wd: 0.01", "gives train.wd the value 0.01"),
        ("data.augment: {choice: [{flip: sideways}]}", "data.augment.flip = 'sideways'"),
        ("model.batch_norm: {choice: [worker, wrker]}", "model.batch_norm = 'wrker'"),
        # Values of a stage that exclude each other
        ("stages.1.start_size: {choice: [null, 32]}", "start_size 32 must be below size 32"),
        (
            "stages.2.size: {choice: [64, 96]}\nstages.2.start_size: {choice: [null, 32, 64]}",
            "start_size 64 must be below size 64",
        ),
        (
            "stages.2.start_size: {choice: [null, 32]}\nstages.2.epochs: {randint: [1, 5]}",
            "in a stage of 2 epochs or more",
        ),
        # Lists
        ("stages: {uniform: [1, 2]}", "the space draws stages by"),
        ("stages: [{size: 32, epochs: 1, lr: 0.1}]", "whole lists of stages are drawn by a choice"),
        ("stages: {choice: {recipe: [{size: 32, epochs: 1, lr: 0.1}]}}", 'the name "recipe"'),
        ("stages: {choice: {a: 3}}", "the list a of the space is 3"),
        (A % "-1", "the space, list a: stages.1.lr = -1: a learning rate must be greater than 0"),
        (A % "{choice: [0.1, -1]}", "the space, list a: stages.1.lr = -1"),
        (A % "{choose: [0.1, 1]}", 'stages.1.lr by "choose". Did you mean "choice"'),
        (A % "{choice: [0.1, 1]}, rate: {choice: [1, 2]}", 'no field "stages.1.rate"'),
        (A % "0.1, rate: 2", 'unknown key "stages.1.rate"'),
        (A % "0.1, 5: 2", 'unknown key "stages.1.5"'),
        (
            A % "{choice: [0.1, 1]}" + "\nstages.1.lr: {choice: [1, 2]}",
            "its list a draws stages.1.lr itself",
        ),
        (
            "stages: {choice: [[{size: 32, epochs: 1, lr: 0.1}], [{size: 32, epochs: 1, lr: 1e-1}]]}",
            "the lists 1 and 2 of the space are equal",
        ),
        (
            "stages: {choice: [[{size: 32, epochs: 1, lr: 0.1}, {size: 32, epochs: 1, lr: 0.1}], "
            "[{size: 32, epochs: 1, lr: 0.1}]]}\nstages.2.lr: {uniform: [0.1, 0.2]}",
            "the space draws stages.2.lr, and its list 2 has 1 stage",
        ),
        # Limits
        ("at_most: {costs: 2}\ntrain.wd: {choice: [1, 2]}", 'costs.*Did you mean "cost"'),
        (
            "at_most: {cost: 2, epochs: 3}\ntrain.wd: {choice: [1, 2]}",
            "limits the cost.*nothing else",
        ),
        ("at_most: 2\ntrain.wd: {choice: [1, 2]}", "at_most = 2 is not understood"),
        ("at_most: {cost: 0}\ntrain.wd: {choice: [1, 2]}", "not a number above 0"),
        # Never used
        ("train: {choice: [{wd: 0.1, stall_s: 9}, {wd: 0.2}]}", "the space draws train.stall_s"),
        (
            "init_from: {choice: ['s3://KEY:S3CRET@bucket/run']}",
            "the space holds the keys of a URI",
        ),
        (
            "model.weights: {choice: [none, imagenet]}\ninit_from: {choice: [a, b]}",
            "init_from, which is the same for all trials",
        ),
        (
            "stages.1.batch_size: {choice: [8, 16]}\nstages.2.batch_size: {choice: [8, 16]}\n"
            "train.batch_size: {choice: [8, 16]}",
            "draws train.batch_size, and every stage has its own batch_size",
        ),
        (
            A % "0.1, augment: {flip: none}" + "\ndata.augment.rotate: {choice: [0, 10]}",
            "draws data.augment.rotate, and every stage has its own augment",
        ),
    ],
)
def test_bad_spaces_are_refused_before_anything_starts(text, sentence):
    with pytest.raises(ConfigError, match=f"(?s){sentence}") as caught:
        read(text)
    assert caught.value.exit_code == 2 and caught.value.why and caught.value.fix
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(refusals.FIXED))
def test_what_is_the_same_for_all_trials_is_not_drawn(path):
    with pytest.raises(ConfigError, match=f"the space draws {path}, which is the same for all"):
        # Paths that do not exist are refused with another sentence.
        read(f"{path}: {{choice: [1, 2]}}")


@pytest.mark.parametrize("lr", ["auto", "lesson"])
@pytest.mark.parametrize(
    "text",
    [
        "stages.1.lr: {loguniform: [0.001, 0.1]}",
        "stages.2.lr.1: {loguniform: [0.001, 0.1]}",
        A % "{choice: [0.1, 0.2]}",
    ],
)
def test_drawn_rates_that_a_range_test_replaces_are_refused(text, lr):
    """Case: two trials with different rates were equal in every epoch."""
    with pytest.raises(ConfigError, match=rf"stages.\d.lr.*, and lr: {lr} replaces it"):
        read(text, lr=lr)
    with pytest.raises(ConfigError, match="a drawn lr replaces it"):
        read(f"{text}\nlr: {{choice: [auto, lesson]}}")


def test_a_common_field_is_drawn_where_one_stage_uses_it():
    space = read("stages.1.batch_size: {choice: [8, 16]}\ntrain.batch_size: {choice: [8, 16]}")
    assert space.size == 4
    optional = "stages.2.batch_size: {choice: [null, 16]}\n"
    assert (
        read(
            f"stages.1.batch_size: {{choice: [8, 16]}}\n{optional}train.batch_size: {{choice: [8, 9]}}"
        ).size
        == 8
    )


# The space that ships


@pytest.mark.parametrize("name", recipe_names())
def test_the_default_space_holds_each_recipe(name, own_network):
    base = load_recipe(name)
    space = default.space(base)
    draw = space.given_draw()
    assert draw.schedule == "same" and space.recipe(draw) == base
    assert space.coordinates(draw) is not None and space.size >= 3 * 5 ** len(base.stages)
    largest = max(stage.size for stage in base.stages)
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = space.recipe(space.draw(rng))
        assert max(stage.size for stage in found.stages) == largest


def test_the_default_space_of_the_lesson():
    base = load_recipe("planet-resnet50-2018")
    content = default.values(base)
    lists = content["stages"]["choice"]
    shapes = {
        name: [(s["size"], s["epochs"], s["freeze"]) for s in stages]
        for name, stages in lists.items()
    }
    assert shapes == {
        "same": [(128, 5, True), (128, 5, False), (256, 5, True), (256, 5, False)],
        "once": [(128, 5, True), (128, 5, False), (256, 10, False)],
        "ramp": [(64, 5, True), (128, 5, False), (256, 10, False)],
    }
    assert lists["same"][1]["lr"] == {
        "choice": [0.0005, 0.001, 0.002, 0.004, 0.008],
        "ratio": pytest.approx(0.005),
    }
    assert content["train.wd"] == {"choice": [0.003, 0.01, 0.03]}
    # Names of stages stay where the stages do.
    named = base.model_copy(
        update={"stages": (base.stages[0].model_copy(update={"name": "a"}), *base.stages[1:])}
    )
    of_named = default.values(named)["stages"]["choice"]
    assert [of_named[name][0].get("name") for name in of_named] == ["a", None, None]
    # As a file, it is the same space.
    assert space_file.read(
        yaml.safe_load(yaml.safe_dump(content, sort_keys=False)), base
    ) == default.space(base)


def test_the_default_space_leaves_out_what_cannot_be_drawn():
    found = default.values(recipe(lr="auto"))
    # Its first stage is as small as the network takes, and no stage freezes the body again.
    assert list(found["stages"]["choice"]) == ["same"]
    assert [stage["lr"] for stage in found["stages"]["choice"]["same"]] == [0.01, [1e-4, 0.002]]
    assert default.values(recipe(select="2")).keys() == {"train.wd", "stages.2.lr"}
    assert default.space(recipe(select="2", train={"wd": 0})).given_draw().values["train.wd"] == 0
