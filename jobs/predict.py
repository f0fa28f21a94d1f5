"""Write logits for a dataset's part or folders of tiles on a Ray cluster, with the flags of `raytrain predict`.

ray job submit --working-dir . -- python jobs/predict.py --checkpoint RUN --storage /shared/runs --dataset /shared/planet --out /shared/valid.parquet
"""

import sys

from raytrain.cli.main import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
