r"""Search fields of a recipe, or thresholds, on a Ray cluster, with the flags of `raytrain tune`.

ray job submit --working-dir . -- python jobs/tune.py --config planet-resnet50 --space space.yaml \
    --dataset /shared/planet --storage /shared/runs
"""

import sys

from raytrain.cli.main import main

if __name__ == "__main__":
    # The command's name comes first, as if `raytrain tune` had been typed.
    main(["tune", *sys.argv[1:]])
