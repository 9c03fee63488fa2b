"""Distance of the weights from where they started, from a fixed share of coordinates.  [torch]"""

from __future__ import annotations

import torch

from intaglio.measure.settle import NET_STRIDE
from intaglio.model.layout import Layout


class NetDistance:
    """Keeps every 61st coordinate of large parameters (all of small ones), and LoRA's factors whole.

    The squared distance is scaled up by the stride: for a million coordinates the error is
    far below a percent, and no second copy of the model is kept.
    """

    def __init__(self, layout: Layout) -> None:
        self.lora = [s for s in layout.sites if s.kind == "lora"]
        adapters = {id(w.param) for s in self.lora for w in s.weights}
        self.plain = [w.param for w in layout.weights if id(w.param) not in adapters]
        self.start = [self._sample(p).clone() for p in self.plain]
        self.start_lora = [(s.weight.param.detach().clone(), s.lora_b.param.detach().clone()) for s in self.lora]

    @staticmethod
    def _stride(p: torch.Tensor) -> int:
        return NET_STRIDE if p.numel() > 100 * NET_STRIDE else 1

    def _sample(self, p: torch.Tensor) -> torch.Tensor:
        return p.detach().reshape(-1)[:: self._stride(p)]

    def measure(self) -> float:
        """norm(theta_now - theta_start), parameter length."""
        total = 0.0
        if self.plain:
            moved = torch._foreach_sub([self._sample(p).float() for p in self.plain], [s.float() for s in self.start])
            shares = [p.numel() / start.numel() for p, start in zip(self.plain, self.start)]
            norms = torch.stack(torch._foreach_norm(moved)).double()
            total = float((norms.square() * norms.new_tensor(shares)).sum())
        for site, (a0, b0) in zip(self.lora, self.start_lora):
            a1, b1 = site.weight.param.detach().double(), site.lora_b.param.detach().double()
            left = torch.cat([b1 - b0.double(), b0.double()], dim=1)
            right = torch.cat([a1, a1 - a0.double()], dim=0)
            total += site.scale**2 * float(((left.mT @ left) * (right @ right.mT)).sum())
        return max(total, 0.0) ** 0.5
