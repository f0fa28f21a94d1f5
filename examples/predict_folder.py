"""The labels of all pictures in a folder, as a CSV file.

    python examples/predict_folder.py RUN PICTURES labels.csv

RUN is the name or path of a run. It needs no Ray: a few thousand pictures take minutes. For more,
`raytrain predict` uses all processors of a machine or of a cluster.
"""

import argparse
import csv

import raytrain


def main() -> None:
    """Writes a row for each picture: its name, its labels, and the highest probability."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("pictures")
    parser.add_argument("out")
    options = parser.parse_args()

    model = raytrain.load_model(options.run)
    paths = raytrain.images_in(options.pictures, subfolders=True).table["path"].tolist()
    probabilities = model.probabilities(paths)
    labels = model.labels(paths)
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "labels", "highest_probability"])
        for path, found, highest in zip(paths, labels, probabilities.max(axis=1), strict=True):
            writer.writerow([path, " ".join(found), f"{highest:.4f}"])
    print(f"{len(paths)} rows in {options.out}")


if __name__ == "__main__":
    main()
