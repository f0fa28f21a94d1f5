"""Searches the weight decay and the last learning rate of a recipe, then trains the winner.

    python examples/search.py DATASET --recipe planet-resnet18 --trials 12

Stages that trials have in common are trained once. The winner is named after its reruns.
"""

import argparse

import raytrain

SPACE = {
    "train.wd": {"choice": [0.003, 0.01, 0.03]},
    # A pair of rates for the last stage: a drawn 0.001 stands for [0.0001, 0.001].
    "stages.4.lr": {"loggrid": [0.00025, 0.002, 4], "ratio": 0.1},
}


def main() -> None:
    """Prints the trials and the report of the winner."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--recipe", default="planet-resnet18")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--reruns", type=int, default=2)
    options = parser.parse_args()

    recipe = raytrain.load_recipe(options.recipe, {"dataset": options.dataset})
    search = raytrain.tune(
        recipe, SPACE, num_samples=options.trials, reruns=options.reruns, name="search"
    )
    print(search.trials)
    print(f"page: {search.page}")
    # The directory of the search is the run of its winner, so nothing has to be trained again.
    print(raytrain.evaluate(search))


if __name__ == "__main__":
    main()
