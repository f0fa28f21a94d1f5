"""CUDA streams that do nothing, and the current device and stream of each thread as CUDA keeps them."""

import threading

import torch


class Streams:
    """Counts the streams that were made; `device` is the calling thread's."""

    def __init__(self):
        self.made, self.thread = [], threading.local()

    @property
    def device(self):
        return getattr(self.thread, "device", 0)

    @device.setter
    def device(self, index):
        self.thread.device = index

    def current(self, device=None):
        index = self.device if device is None else device.index
        stream = getattr(self.thread, "stream", None)
        return stream if stream is not None and stream.device.index == index else Stream(index)

    def make(self, device=None):
        stream = Stream(self.device if device is None or device.index is None else device.index)
        self.made.append(stream)
        return stream

    def set(self, stream):
        self.thread.device, self.thread.stream = stream.device.index, stream


class Stream:
    def __init__(self, index):
        self.device = torch.device("cuda", index)

    def record_event(self):
        return None

    def wait_event(self, event):
        pass


class Device:
    """`with torch.cuda.device(...)`, where there is none."""

    def __init__(self, device):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass
