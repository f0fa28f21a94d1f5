"""A folder of pictures whose subfolders are their classes, to a trained model.

    python examples/own_folder.py PICTURES OUT

PICTURES has a folder for each class, such as PICTURES/forest/a17.jpg. OUT gets the dataset and the
run. Where the run stops, the same command goes on.
"""

import argparse
from pathlib import Path

import raytrain


def main() -> None:
    """Ingests, trains, and prints the classes that are hardest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures")
    parser.add_argument("out")
    parser.add_argument("--recipe", default="single-label-resnet18")
    options = parser.parse_args()

    tiles = raytrain.images_in(options.pictures, subfolders=True)
    tiles = tiles.label_from_folders(task="single-label")
    print(tiles)
    # Every class is in the training part and in the validation part.
    divided = tiles.split(by="stratified", valid=0.2, seed=42)
    dataset = raytrain.ingest(divided, f"{options.out}/dataset")

    settings = {
        "dataset": dataset.path,
        "storage": f"{options.out}/runs",
        "data": {"split": "stratified"},
    }
    recipe = raytrain.load_recipe(options.recipe, settings)
    if Path(options.out, "runs", "first").exists():
        run = raytrain.resume("first", storage_path=recipe.storage)
    else:
        run = raytrain.train(recipe, name="first")
    print(f"report: {run.report}")
    print(raytrain.evaluate(run).labels.sort_values("recall").head())


if __name__ == "__main__":
    main()
