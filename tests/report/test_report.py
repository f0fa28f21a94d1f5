"""The report of a run: its contents, missing and damaged files, and its model card."""

import base64
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from handmade import tiff
from PIL import Image

from raytrain.cli.main import run_command
from raytrain.config import Recipe
from raytrain.data import dataset as ds
from raytrain.data.tile_format import TileFormat
from raytrain.errors import DataError
from raytrain.evaluation import predictions as prediction_files
from raytrain.evaluation import rules
from raytrain.evaluation.predictions import Predictions
from raytrain.evaluation.tasks import multi_label
from raytrain.report import page, plots, tiles

CLASSES = ("<b>", "clear", "primary", "road & rail", "water|$x$")
STAGES = [
    {"size": 32, "epochs": 2, "freeze": True, "lr": 0.01},
    {"size": 32, "epochs": 1, "lr": [1e-5, 0.002]},
    {"size": 64, "epochs": 2, "lr": [1e-5, 0.001]},
]
STAGE_NAMES = ("stage-1-32", "stage-2-32", "stage-1-64")
ROWS = 30
STEPS_PER_EPOCH = 4


def jpeg(color: tuple[int, int, int], mode: str) -> bytes:
    """A tile of one RGB colour. In mode CMYK its channels are inverted and it has no black, as Planet's files."""
    image = Image.new("RGB", (32, 32), color)
    if mode == "CMYK":
        image = Image.new("CMYK", (32, 32), (*(255 - value for value in color), 0))
    sink = io.BytesIO()
    image.save(sink, format="JPEG", quality=95)
    return sink.getvalue()


def make_dataset(path: Path, target: np.ndarray) -> None:
    pictures = [jpeg((200, 60, 30), "CMYK" if row % 2 else "RGB") for row in range(len(target))]
    table = pa.table(
        {
            "image_name": [f"tile_{row}" for row in range(len(target))],
            "image": pictures,
            "width": [32] * len(target),
            "height": [32] * len(target),
            "crc32": [crc32(picture) for picture in pictures],
            "target": list(target),
        },
        schema=ds.SHARD_SCHEMA,
    )
    content = ds.shard_bytes(list(zip(*table.to_pydict().values(), strict=True)))
    (path / "shards").mkdir(parents=True)
    (path / "shards" / "part-00000.parquet").write_bytes(content)
    shard = {
        "file": "part-00000.parquet",
        "rows": len(target),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest = {
        "schema_version": 1,
        "classes": CLASSES,
        "tile_size": 32,
        "shards": [shard],
        "splits": [],
    }
    (path / "dataset.json").write_text(json.dumps(manifest))


def make_curves() -> tuple[pd.DataFrame, pd.DataFrame]:
    """metrics.jsonl and history.csv of the three stages: step n has loss 1 / (n + 1), epoch n has F2 0.8 + n / 100."""
    steps = []
    history = []
    for stage, settings in enumerate(STAGES, 1):
        for epoch in range(1, settings["epochs"] + 1):
            for _ in range(STEPS_PER_EPOCH):
                row = {
                    "stage": stage,
                    "epoch": epoch,
                    "step": len(steps),
                    "lr": [0.0, 1e-4, 1e-3],
                    "momentum": 0.9,
                }
                steps.append(row | {"loss": 1 / (len(steps) + 1)})
            f2 = 0.81 + len(history) / 100
            history.append(
                {
                    "stage": stage,
                    "size": settings["size"],
                    "epoch": epoch,
                    "lr": 1e-6,
                    "train_loss": 0.3,
                    "valid_loss": 0.2,
                    "accuracy": 0.9,
                    "f2": f2,
                    "f2_best": f2,
                    "images_per_s": 123.4,
                    "seconds": 2.0,
                }
            )
    return pd.DataFrame(steps), pd.DataFrame(history)


def make_predictions(path: Path, dataset: Path, target: np.ndarray) -> np.ndarray:
    """Writes predictions.parquet; logits follow the targets, so that some tiles are right and some are not."""
    logits = (6.0 * target - 3.5 + np.random.default_rng(0).normal(0, 1.5, target.shape)).astype(
        np.float32
    )
    names = tuple(f"tile_{row}" for row in range(len(target)))
    meta = {"task": "multi-label", "split": "random", "part": "valid", "dataset": str(dataset)}
    prediction_files.write(str(path), Predictions(names, logits, target, CLASSES, meta))
    return logits


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run named `calm-run` with every file that a run may have."""
    rng = np.random.default_rng(1)
    target = (rng.random((ROWS, len(CLASSES))) < 0.4).astype(np.uint8)
    target[:, 2] = 1
    dataset, path = tmp_path / "tiles", tmp_path / "runs" / "calm-run"
    make_dataset(dataset, target)
    path.mkdir(parents=True)
    steps, history = make_curves()
    history.to_csv(path / "history.csv", index=False)
    (path / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in steps.to_dict("records"))
    )
    recipe = Recipe.model_validate(
        {"model": {"arch": "resnet18"}, "stages": STAGES, "dataset": str(dataset)}
    )
    (path / "config.yaml").write_text(recipe.to_yaml())
    env = {
        "command": "raytrain train --name '<calm>'",
        "versions": {"torch": "2.15"},
        "tiles": 150,
        "synthetic": False,
    }
    (path / "env.json").write_text(json.dumps(env))
    baselines = {"constant": {"labels": ["primary"], "f2": 0.4321}, "logistic": {"f2": 0.5432}}
    (path / "baselines.json").write_text(json.dumps(baselines))
    make_predictions(path / "predictions.parquet", dataset, target)
    return path


def tile_f2(logits: np.ndarray, target: np.ndarray, threshold: float = 0.2) -> np.ndarray:
    """F2 by its definition, one tile at a time: 5 P R / (4 P + R)."""
    predicted = 1 / (1 + np.exp(-logits.astype(float))) > threshold
    found = []
    for predicted_row, true_row in zip(predicted, target.astype(bool), strict=True):
        hits = (predicted_row & true_row).sum()
        if hits == 0:
            found.append(0.0)
            continue
        precision = hits / predicted_row.sum()
        recall = hits / true_row.sum()
        found.append(5 * precision * recall / (4 * precision + recall))
    return np.array(found)


def visible(html: str) -> str:
    """The page without its pictures."""
    return re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", html)


def png_size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", content[16:24])


def test_report_shows_stages_labels_scores_and_commands(run: Path):
    html = Path(page.write(str(run))).read_text()
    text = visible(html)
    predictions = prediction_files.read(str(run / "predictions.parquet"))
    f2 = tile_f2(predictions.logits, predictions.target).mean()
    assert f'<div class="big">{f2:.4f}</div>' in text
    assert "mean over 30 validation tiles, threshold 0.2" in text
    for name in (
        *STAGE_NAMES,
        "clear",
        "primary",
        "road &amp; rail",
        "water|$x$",
        "0.4321",
        "0.5432",
        "2.15",
    ):
        assert name in text
    assert f"raytrain predict --checkpoint {run}" in text
    assert f"--thresholds {run}/thresholds.json" in text


def test_report_is_one_small_file_that_loads_nothing(run: Path):
    html = Path(page.write(str(run))).read_text()
    assert "http://" not in html and "https://" not in html
    assert "<script" not in html and "<link" not in html
    assert all(
        source.startswith("data:image/")
        for source in re.findall(r'(?:src|srcset|href)="([^"]*)"', html)
    )
    assert len(html) < 3_000_000


def test_words_from_outside_are_escaped(run: Path):
    html = Path(page.write(str(run))).read_text()
    assert "<b>" not in html and "&lt;b&gt;" in html
    assert "<calm>" not in html and "&lt;calm&gt;" in html
    card = Path(page.model_card(str(run))).read_text()
    assert "<b>" not in card and "<calm>" not in card and "water\\|$x$" in card


def test_pictures_are_also_written_as_files(run: Path):
    page.write(str(run))
    for name in ("losses", "lr", "f2", "per_label"):
        assert png_size((run / f"{name}.png").read_bytes())[0] == 1200


def test_stage_table_holds_the_last_epoch_of_each_stage(run: Path):
    text = visible(Path(page.write(str(run))).read_text())
    table = text[text.index("<h2>Stages") : text.index("<h2>Training")]
    assert re.findall(r"<td>(stage-[^<]+)</td>", table) == list(STAGE_NAMES)
    assert re.findall(r"<td>(0\.8\d{3})</td>", table) == ["0.8200", "0.8300", "0.8500"]
    assert "1e-05 – 0.002" in table and "0:04" in table
    assert "Not finished" not in text


def test_report_of_an_unfinished_run_shows_how_to_resume_it(run: Path):
    history = pd.read_csv(run / "history.csv")
    history.iloc[:3].to_csv(run / "history.csv", index=False)
    text = visible(Path(page.write(str(run))).read_text())
    assert "3 of 5 epochs" in text and "raytrain train --resume calm-run" in text


@pytest.mark.parametrize(
    "missing",
    ["config.yaml", "env.json", "metrics.jsonl", "predictions.parquet", "baselines.json", "all"],
)
def test_missing_optional_files_only_shorten_the_report(run: Path, missing: str):
    for file in list(run.iterdir()):
        if file.name == missing or (missing == "all" and file.name != "history.csv"):
            file.unlink()
    text = visible(Path(page.write(str(run))).read_text())
    assert "0.8500" in text
    assert ("stage-1-64" in text) == (missing not in ("config.yaml", "all"))
    assert ("<h2>Labels" in text) == (missing not in ("predictions.parquet", "all"))
    assert "0.85" in Path(page.model_card(str(run))).read_text()


def test_run_without_history_is_a_data_error(run: Path):
    (run / "history.csv").unlink()
    with pytest.raises(DataError, match=r"calm-run has no history\.csv") as caught:
        page.write(str(run))
    assert caught.value.exit_code == 3 and caught.value.fix.startswith("raytrain ")
    assert not (run / "report.html").exists()


def test_damaged_optional_file_is_named(run: Path):
    (run / "metrics.jsonl").write_text('{"stage": 1, "ep')
    with pytest.raises(DataError, match=r"metrics\.jsonl is damaged"):
        page.write(str(run))


def test_report_is_written_without_tiles_if_the_dataset_is_gone(run: Path, tmp_path: Path):
    (tmp_path / "tiles").rename(tmp_path / "moved")
    text = visible(Path(page.write(str(run))).read_text())
    assert "No tiles are shown" in text and "is not a dataset" in text
    assert "<h2>Labels" in text and 'class="tile"' not in text


def test_tile_captions_name_right_missed_and_false_labels(run: Path):
    predictions = prediction_files.read(str(run / "predictions.parquet"))
    predicted = 1 / (1 + np.exp(-predictions.logits)) > 0.2
    text = visible(Path(page.write(str(run))).read_text())
    words = re.sub(r"<[^>]+>", "", text)
    assert (
        "Labels without a mark are right. Missed labels are true but were not predicted." in words
    )
    captions = re.findall(r'<figure class="tile">.*?</figure>', text, re.DOTALL)
    assert len(captions) == 12
    for caption in captions:
        row = int(re.search(r"<span>tile_(\d+)</span>", caption).group(1))
        for word, which in (
            ("missed", ~predicted & (predictions.target == 1)),
            ("false", predicted & (predictions.target == 0)),
        ):
            shown = re.search(rf'<span class="{word}">{word}: (.*?)</span>', caption)
            named = shown.group(1).split(", ") if shown else []
            escaped = [
                CLASSES[k].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
                for k in np.flatnonzero(which[row])
            ]
            assert named == escaped


def test_cmyk_tiles_are_shown_in_their_own_colours():
    for mode in ("RGB", "CMYK"):
        encoded = tiles.thumbnail(jpeg((200, 60, 30), mode)).partition(",")[2]
        content = base64.b64decode(encoded)
        image = Image.open(io.BytesIO(content), formats=("JPEG",))
        assert image.mode == "RGB" and image.size == (160, 160)
        assert np.abs(np.asarray(image).mean((0, 1)) - (200, 60, 30)).max() < 4


def test_tiles_of_four_bands_of_16_bits_are_shown_in_the_colours_of_three_of_them():
    # Blue, green, red and near infrared; a white half, so that there is something to stretch to.
    values = np.zeros((32, 32, 4), np.uint16)
    values[:16] = [0, 1500, 3000, 9999]
    values[16:] = 3000
    form = TileFormat(4, "uint16", (1, 2, 3, 4))
    content = base64.b64decode(tiles.thumbnail(tiff(values), form).partition(",")[2])
    image = np.asarray(Image.open(io.BytesIO(content), formats=("JPEG",)))
    assert np.abs(image[20:60].mean((0, 1)) - (255, 127.5, 0)).max() < 8
    assert np.abs(image[100:140].mean((0, 1)) - 255).max() < 4


def test_choose_takes_best_median_and_worst_without_a_tile_twice():
    f2 = np.array([0.1, 0.9, 0.5, 0.3, 1.0, 0.6, 0.2])
    chosen = tiles.choose(f2, np.ones(7), each=2)
    assert chosen == {"best": [4, 1], "median": [5, 2], "worst": [0, 6]}
    few = tiles.choose(np.ones(5), np.ones(5))
    rows = [row for rows in few.values() for row in rows]
    assert len(rows) == len(set(rows)) == 3


def test_only_synthetic_runs_are_marked_as_synthetic(run: Path):
    assert "Synthetic" not in visible(Path(page.write(str(run))).read_text())
    assert "SYNTHETIC" not in Path(page.model_card(str(run))).read_text()
    (run / "env.json").write_text(json.dumps({"synthetic": True}))
    text = visible(Path(page.write(str(run))).read_text())
    assert text.index("Synthetic: ") < text.index("<h1>")
    card = Path(page.model_card(str(run))).read_text()
    assert card.lstrip().startswith("> **SYNTHETIC DATA.**")


def test_model_card_has_counts_thresholds_limits_and_licence(run: Path):
    card = Path(page.model_card(str(run))).read_text()
    predictions = prediction_files.read(str(run / "predictions.parquet"))
    counts = dict(
        re.findall(r"^\| (\S+) \| (\d+) \| [\d.–]+ \| [\d.–]+ \| [\d.–]+ \|", card, re.MULTILINE)
    )
    assert counts["clear"] == str(predictions.target[:, 1].sum())
    assert f"{tile_f2(predictions.logits, predictions.target).mean():.4f}" in card
    for part in (
        "## Labels",
        "## Decisions",
        "decision rule",
        "## Limits",
        "## Data licence",
        "rules of that Kaggle competition",
        "judged on: 30",
    ):
        assert part in card
    assert "| stage-2-32 |" in card


def test_evaluation_report_needs_only_predictions(run: Path, tmp_path: Path):
    out = tmp_path / "judged"
    path = page.write_evaluation(str(out), prediction_files.read(str(run / "predictions.parquet")))
    text = visible(Path(path).read_text())
    predictions = prediction_files.read(str(run / "predictions.parquet"))
    assert (
        f'<div class="big">{tile_f2(predictions.logits, predictions.target).mean():.4f}</div>'
        in text
    )
    assert "<h2>Labels" in text and text.count('class="tile"') == 12
    assert "<h2>Stages" not in text and not (out / "losses.png").exists()
    assert (out / "per_label.png").exists()


def test_pictures_differ_when_the_data_differ():
    steps, history = make_curves()
    table = pd.DataFrame({"label": CLASSES, "f2": [0.1, 0.2, 0.3, 0.4, np.nan], "count": range(5)})
    draws = [
        (lambda h, s, t: plots.losses(s, h, STAGE_NAMES), 496),
        (lambda h, s, t: plots.scores(h, STAGE_NAMES, multi_label.METRICS, multi_label.SCORE), 464),
        (lambda h, s, t: plots.schedule(s, STAGE_NAMES), 624),
        (lambda h, s, t: plots.per_label(t, multi_label.SCORE), 336),
    ]
    other = (
        history.assign(f2=0.5, valid_loss=0.9),
        steps.assign(momentum=0.5, loss=0.5),
        table.assign(f2=0.9),
    )
    for draw, height in draws:
        first = draw(history, steps, table)
        assert png_size(first) == (1200, height)
        assert first == draw(history, steps, table)
        assert first != draw(*other)


def test_pictures_survive_a_loss_that_is_not_finite_and_frozen_groups():
    steps, history = make_curves()
    steps.loc[3, "loss"] = np.nan
    steps["lr"] = [[0.0, 0.0]] * len(steps)
    assert png_size(plots.losses(steps, history.assign(valid_loss=np.inf), STAGE_NAMES))
    assert png_size(plots.schedule(steps, STAGE_NAMES))
    assert png_size(
        plots.scores(history.assign(f2=np.nan), STAGE_NAMES, multi_label.METRICS, multi_label.SCORE)
    )


def test_epochs_are_drawn_at_their_last_step():
    steps, history = make_curves()
    assert plots.epoch_positions(steps, history).tolist() == [3, 7, 11, 15, 19]
    assert plots.epoch_positions(steps.iloc[:0], history).tolist() == [1, 2, 3, 4, 5]
    lost = plots.epoch_positions(steps[steps["stage"] < 3], history)
    assert lost[:3].tolist() == [3, 7, 11] and np.isnan(lost[3:]).all()


def test_the_report_imports_neither_torch_nor_ray():
    code = "import sys, raytrain.report.page\nprint(sorted({'torch', 'ray', 'matplotlib.pyplot'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_thresholds_are_fitted_once_on_each_half_and_once_on_all(
    run: Path, tmp_path: Path, command, monkeypatch
):
    fitted, fit = [], rules.fit
    monkeypatch.setattr(
        rules, "fit", lambda logits, *more: fitted.append(len(logits)) or fit(logits, *more)
    )
    if command == "evaluate":
        out = tmp_path / "evaluation"
        assert run_command(["evaluate", str(run / "predictions.parquet"), "--out", str(out)]) == 0
    else:
        out = run
        assert run_command(["runs", "report", run.name, "--storage", str(run.parent)]) == 0
    assert fitted == [15, 15, 30]
    assert (out / "thresholds.json").exists() and (out / "report.html").exists()


def test_a_run_without_predictions_has_nothing_to_conclude(run: Path, capsys):
    (run / "predictions.parquet").unlink()
    assert run_command(["runs", "report", run.name, "--storage", str(run.parent)]) == 3
    assert "has no predictions with labels" in capsys.readouterr().err
