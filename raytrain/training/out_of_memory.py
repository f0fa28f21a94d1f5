"""What a step says that found too little memory on a GPU: how many passes would fit, found by
trying.
"""

from __future__ import annotations

import torch

from raytrain.config import Recipe, Stage
from raytrain.errors import MemoryExceededError
from raytrain.models.networks import in_channels
from raytrain.models.precision import autocast, dtype_of
from raytrain.tiles import sampling
from raytrain.training import execution
from raytrain.training.batch_plan import BatchPlan
from raytrain.training.trained import Trained
from raytrain.worker import Worker

# Adam keeps two moments of each weight.
ADAM_MOMENTS = 2


def advice(
    recipe: Recipe,
    stage: Stage,
    trained: Trained,
    worker: Worker,
    plan: BatchPlan,
    message: str,
) -> MemoryExceededError:
    """The error of a step that ran out of memory, with the accumulation that fits.

    Args:
        recipe: of the run.
        stage: that was trained.
        trained: network and optimiser; the tensors of the failed step are free again.
        worker: this process.
        plan: of the batch.
        message: first line of torch's own error.
    """
    tiles = plan.passes[0].stop - plan.passes[0].start
    size = stage.size_at(plan.epoch)
    passes = recipe.train.accumulate
    factor = passes_that_fit(trained, recipe.train.precision, worker.device, (tiles, size))
    if factor:
        why = f"training stops; tried just now: {tiles // factor} tiles in one pass do fit"
        fix = f"--train.accumulate {passes * factor}"
    else:
        why = "not even 2 tiles in one pass fit"
        fix = "a smaller stage size or network"
    return MemoryExceededError(
        f"the GPU's memory is too small for {tiles} tiles of {size} px in one pass "
        f"(global batch {len(plan.rows)}, train.accumulate = {passes}): {message}",
        why,
        fix,
    )


def passes_that_fit(
    trained: Trained, precision: str, device: torch.device, tiles_and_size: tuple[int, int]
) -> int:
    """The power of two that the number of passes must be multiplied by; 0 where nothing fits.

    Args:
        trained: network and optimiser.
        precision: as in the recipe.
        device: that trains.
        tiles_and_size: tiles of the pass that did not fit, and their side in pixels.
    """
    # Graphs hold memory, of passes that are too large.
    execution.run_eagerly(trained.model)
    tiles, size = tiles_and_size
    factor = 2
    while tiles // factor >= sampling.MIN_TILES_PER_RANK:
        trained.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        largest_pass = -(-tiles // factor)  # rounded up
        shape = (largest_pass, in_channels(trained.model), size, size)
        if _fits(trained, precision, device, shape):
            return factor
        factor *= 2
    return 0


def _fits(trained: Trained, precision: str, device: torch.device, shape: tuple[int, ...]) -> bool:
    """Whether a pass of pixels of this shape finds room; leaves nothing behind but gradients."""
    try:
        # The first step has yet to make the optimiser's moments; they are held until the pass is
        # through.
        moments = []
        if not trained.optimizer.state:
            moments = [torch.empty_like(weight) for weight in trained.weights * ADAM_MOMENTS]
        pixels = torch.zeros(shape, dtype=dtype_of(precision), device=device)
        with autocast(precision, device):
            logits = trained.model(pixels.contiguous(memory_format=torch.channels_last))
        logits.sum().backward()
    except torch.OutOfMemoryError:
        return False
    del moments
    return True
