#!/bin/sh
# The lesson's four stages as two runs: 128 px first, then 256 px from those weights.
#   sh examples/chained_runs.sh DATASET RECIPE
# The second run may have other settings. With equal ones, both together have the bits of one run.
set -eu
dataset=$1
recipe=${2:-planet-resnet50}
raytrain train --config "$recipe" --dataset "$dataset" --stages 1-2 --name small
raytrain train --config "$recipe" --dataset "$dataset" --stages 3-4 --name large --init-from small
raytrain runs show large
