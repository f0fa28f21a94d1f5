import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.config import Recipe, Stage
from raytrain.search.cost import Costs, pixels


def operations(arch, frozen):
    """A forward pass of 1, a backward pass of 2; the large network takes ten times as much."""
    return {"small": 1, "large": 10}[arch] * (1 if frozen == 2 else 3)


def recipe(*stages, arch="small", **fields):
    return Recipe.model_validate({"model": {"arch": arch}, "stages": stages, **fields})


FROZEN = {"size": 100, "epochs": 6, "freeze": True, "lr": 0.01}
WHOLE = {"size": 200, "epochs": 4, "lr": 0.01}


def test_the_given_recipe_costs_one_by_epochs_pixels_and_operations():
    given = recipe(FROZEN, WHOLE)
    costs = Costs.relative_to(given, operations)
    # 6 x 1 x 100^2 against 4 x 3 x 200^2: 6 against 48.
    assert costs.of(given) == pytest.approx((6 / 54, 48 / 54))
    assert costs.of(recipe(WHOLE, FROZEN, FROZEN)) == pytest.approx((48 / 54, 6 / 54, 6 / 54))


def test_another_network_costs_what_it_computes():
    costs = Costs.relative_to(recipe(FROZEN, WHOLE), operations)
    assert sum(costs.of(recipe(FROZEN, WHOLE, arch="large"))) == pytest.approx(10)


def test_only_stages_that_are_trained_cost():
    given = recipe(FROZEN, WHOLE, select="2")
    costs = Costs.relative_to(given, operations)
    assert costs.of(given) == (1.0,)
    assert costs.of(recipe(FROZEN, WHOLE)) == pytest.approx((6 / 48, 1))


def test_a_growing_stage_costs_the_pixels_of_each_epoch():
    growing = Stage(size=128, epochs=3, lr=0.1, start_size=64)
    assert pixels(growing) == 64**2 + 96**2 + 128**2
    assert pixels(Stage(size=128, epochs=3, lr=0.1)) == 3 * 128**2


@given(
    sizes=st.lists(st.integers(16, 512), min_size=1, max_size=5),
    epochs=st.integers(1, 20),
)
def test_costs_add_up_to_one_and_grow_with_epochs(sizes, epochs):
    given = recipe(*[{"size": size, "epochs": epochs, "lr": 0.1} for size in sizes])
    longer = recipe(*[{"size": size, "epochs": epochs + 1, "lr": 0.1} for size in sizes])
    costs = Costs.relative_to(given, operations)
    assert sum(costs.of(given)) == pytest.approx(1)
    assert sum(costs.of(longer)) == pytest.approx((epochs + 1) / epochs)
