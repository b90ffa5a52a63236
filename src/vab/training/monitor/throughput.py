"""Where the time of training goes: steps, waiting for data, and how much of the device the model uses."""

from __future__ import annotations

from time import perf_counter

import torch

# Published dense bfloat16 TFLOP/s by a part of the device's name, the first that fits. The vendor's data
# sheets: H200, H100 (SXM, PCIe, NVL), A100, L40S, L4, A10; the Ada and Ampere white papers of the GeForce RTX
# (with float32 accumulation).
PEAK_TFLOPS = {
    "GH200": 989.4,
    "H200": 989.4,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "L4 ": 121.0,
    "A10 ": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def peak_flops(device: torch.device) -> float | None:
    """Published dense bfloat16 FLOP/s of a device; None if they are not known here, as of every CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device) + " "  # so that "L4 " is not the beginning of L40
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


class Throughput:
    """The speed of the steps between two lines of the log; what else a run does meanwhile does not count."""

    def __init__(self, batch_size: int, device: torch.device, world_size: int) -> None:
        self.batch_size = batch_size
        peak = peak_flops(device)
        self.peak = None if peak is None else peak * world_size
        self.steps, self.waited, self.spent, self.flops = 0, 0.0, 0.0, 0.0
        self._begin = 0.0

    def begin(self) -> None:
        """A step begins: it waits for its batch."""
        self._begin = perf_counter()

    def got_batch(self) -> None:
        """It has its batch."""
        self.waited += perf_counter() - self._begin

    def end(self, clip_flops: float) -> None:
        """It is done, and the model has computed so much for each clip of the global batch."""
        self.spent += perf_counter() - self._begin
        self.flops += self.batch_size * clip_flops
        self.steps += 1

    def values(self) -> dict[str, float]:
        """Seconds of a step and, of them, of waiting for data; clips/s; TFLOP/s and MFU. Counts anew then.

        TFLOP/s are those of the model (``vab.models.flops``), of all devices together. MFU, their share of
        the devices' published bfloat16 peak, is left out where that is not known.
        """
        rate = self.flops / self.spent
        values = {
            "step_seconds": self.spent / self.steps,
            "data_seconds": self.waited / self.steps,
            "clips_per_second": self.steps * self.batch_size / self.spent,
            "model_tflops": rate / 1e12,
        }
        if self.peak is not None:
            values["mfu"] = rate / self.peak
        self.steps, self.waited, self.spent, self.flops = 0, 0.0, 0.0, 0.0
        return values
