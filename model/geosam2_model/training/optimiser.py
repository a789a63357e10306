"""How weights are stepped: hidden matrices by Muon, everything else by AdamW.

Muon (K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes the momentum of a
matrix, makes its singular values alike, and steps along that. PyTorch's own takes no convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

NARROW = 16
"""Matrices with a side below this are left to AdamW."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, from the page above."""
RMS = 0.2
"""Root mean square of a step at learning rate 1, about that of AdamW
(https://arxiv.org/abs/2502.16982, section 2.2)."""


def is_hidden_matrix(name: str, p: Tensor) -> bool:
    """Whether a weight maps many channels to many: no table of embeddings, no depthwise kernel.

    >>> is_hidden_matrix("a.weight", torch.zeros(32, 48, 3, 3))
    True
    >>> is_hidden_matrix("a.weight", torch.zeros(96, 1, 7, 7))
    False
    """
    table = any(part in name for part in ("embed", "token", "pos_enc"))
    return p.ndim > 1 and not table and min(p.shape[:2]) >= NARROW


def groups(model: nn.Module, trunk: nn.Module) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """What AdamW steps, as parameter groups of which one is marked `trunk`, and what Muon does.

    Args:
        model: All of it.
        trunk: The part that was trained before; stepped more carefully, by AdamW alone.
    """
    early = {id(p) for p in trunk.parameters()}
    rest = [(n, p) for n, p in model.named_parameters() if id(p) not in early]
    matrices = [p for n, p in rest if is_hidden_matrix(n, p)]
    others = [p for n, p in rest if not is_hidden_matrix(n, p)]
    return [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        {"params": list(trunk.parameters()), "weight_decay": 0.0, "trunk": True},
    ], matrices


class Muon(torch.optim.Optimizer):
    """Momentum with equal singular values; convolutions are matrices of (outputs, all inputs)."""

    def __init__(
        self, params: Iterable[Tensor], momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, group)

    def _step(self, p: Tensor, group: dict[str, Any]) -> None:
        gradient = p.grad.reshape(len(p), -1)  # type: ignore[union-attr]
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        moved: Tensor = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = levelled(gradient.lerp(moved, group["momentum"]))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(update.reshape(p.shape), alpha=group["lr"] * RMS * max(update.shape) ** 0.5)


def levelled(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The matrix with all singular values near 1 (0.7 to 1.2)."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return cast(Tensor, x.T if tall else x)
