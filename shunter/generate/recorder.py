"""Records work as CUDA graphs (`shunter.models.replays`)."""

from __future__ import annotations

from contextlib import suppress

import torch

from shunter.models.replays import Work


class CudaRecorder:
    """Records as CUDA graphs, which share their memory: one at a time is replayed."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self.device = device

    def __call__(self, work: Work) -> Work:
        """Does the work, and records it as it is done once more; that runs when it is replayed."""
        with torch.cuda.device(self.device):
            outside = torch.cuda.current_stream()
            self.stream.wait_stream(outside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(self.stream):
                work()  # what libraries set up at their first call cannot be recorded
                self._make_room()
                # Other threads of the process may use the device meanwhile.
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    work()
                except BaseException:
                    with suppress(RuntimeError):  # which would hide what went wrong
                        graph.capture_end()
                    raise
                graph.capture_end()
            outside.wait_stream(self.stream)
        return graph.replay

    def _make_room(self) -> None:
        """What the allocator keeps for later, as learning's peak, is given back where it is more than is
        free: while a graph is recorded it gives nothing back."""
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if kept > torch.cuda.mem_get_info()[0]:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
