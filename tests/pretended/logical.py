"""A local Ray that declares two GPUs which do not exist: resources, local ranks and pools are real, the devices are CPUs."""

GPUS = 2


def start_of_a_worker():
    """What each worker process does first: a GPU that it is granted is a CPU. A closure, so that it travels by value."""

    def on_cpu():
        import ray.train.torch
        import torch

        from raytrain.distributed import gpus

        gpus.device = lambda granted: torch.device("cpu")
        ray.train.torch.get_device = lambda: torch.device("cpu")

    return on_cpu
