r"""Train the stages of a recipe on a Ray cluster, with the flags of `raytrain train`.

ray job submit --working-dir . -- python jobs/train.py --config planet-resnet50 \
    --dataset /shared/planet --storage /shared/runs
"""

import sys

from raytrain.cli.main import main

if __name__ == "__main__":
    # The command's name comes first, as if `raytrain train` had been typed.
    main(["train", *sys.argv[1:]])
