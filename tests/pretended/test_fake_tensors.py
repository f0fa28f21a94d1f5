"""Between two steps nothing is read from a GPU, and what goes there is not waited for: seen on fake CUDA tensors."""

import json
import os
import subprocess
import sys
from pathlib import Path

SETTINGS = [{}, {"mixup": 0.4, "clip_norm": 1.0, "accumulate": 2, "ema": 0.9, "warp": 0.2}]
# Row numbers, row numbers again for the targets, and the draws of a batch.
LEAST_COPIES = 3


def test_between_two_steps_nothing_is_read_and_all_copies_go_to_the_gpu_without_waiting():
    here = Path(__file__).parent
    path = os.pathsep.join(
        [str(here.parents[1]), str(here.parent), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, str(here / "fake_step.py"), json.dumps(SETTINGS)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout):
        assert found["outcomes"] == ["cuda", "cuda"] and found["gradients left"] == 0
        ((source, target, at_once, count),) = found["copies"]
        assert (source, target, at_once) == ("cpu", "cuda", True) and count >= 2 * LEAST_COPIES
