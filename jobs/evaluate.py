r"""Evaluate predictions on a Ray cluster, with the flags of `raytrain evaluate`.

ray job submit --working-dir . -- python jobs/evaluate.py /shared/valid.parquet \
    --out /shared/evaluation
"""

import sys

from raytrain.cli.main import main

if __name__ == "__main__":
    # The command's name comes first, as if `raytrain evaluate` had been typed.
    main(["evaluate", *sys.argv[1:]])
