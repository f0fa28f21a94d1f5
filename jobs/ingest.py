r"""Make a dataset from tiles and a label CSV on a Ray cluster, with the flags of `raytrain ingest`.

ray job submit --working-dir . -- python jobs/ingest.py --images /shared/train-jpg \
    --labels /shared/train_v2.csv --out /shared/planet
"""

import sys

from raytrain.cli.main import main

if __name__ == "__main__":
    # The command's name comes first, as if `raytrain ingest` had been typed.
    main(["ingest", *sys.argv[1:]])
