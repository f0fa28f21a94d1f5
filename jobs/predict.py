r"""Predict tiles on a Ray cluster and write their logits, with the flags of `raytrain predict`.

ray job submit --working-dir . -- python jobs/predict.py --checkpoint RUN --storage /shared/runs \
    --dataset /shared/planet --out /shared/valid.parquet
"""

import sys

from raytrain.cli.main import main

if __name__ == "__main__":
    # The command's name comes first, as if `raytrain predict` had been typed.
    main(["predict", *sys.argv[1:]])
