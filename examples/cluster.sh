#!/bin/sh
# Ingest, train and search on a Ray cluster, submitted from a laptop.
#   RAY_API_SERVER_ADDRESS=http://HEAD:8265 sh examples/cluster.sh s3://BUCKET/tiles s3://BUCKET/raytrain
# $1 has the folders and tables of `raytrain download planet`, $2 is a place that all machines see.
set -eu
tiles=$1
place=$2
submit="ray job submit --working-dir . --"
$submit python jobs/ingest.py --images "$tiles/train-jpg" --labels "$tiles/train_v2.csv" --out "$place/planet"
$submit python jobs/train.py --config planet-resnet50 --dataset "$place/planet" --storage "$place/runs" \
    --name first --num-workers 4
$submit python jobs/tune.py --config planet-resnet50 --dataset "$place/planet" --storage "$place/runs" \
    --name search --num-samples 30
