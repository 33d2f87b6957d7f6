"""AdamW that leaves the rows of a large embedding table alone until a batch looks them up.

A batch looks up a few hundred of the thousands of rows of a table. AdamW moves the others, too: their moments decay,
and what is left of them still moves the weights. For a small student that took longer than its forward and backward
pass. Here a row is moved when it is needed next, or at the end, by as much as all those steps would have moved it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
LARGE = 4096
"""Rows from which a table is treated this way."""


class AdamW(torch.optim.AdamW):
    """AdamW (arXiv 1711.05101) with a learning rate for every step that is known before, and lazy embedding tables.

    Parameters
    ----------
    model
        What is trained. Its embedding tables of at least ``LARGE`` rows that lie on a CPU are lazy; of a model of
        transformers only that of the words, since of others nobody says which rows a batch looks up, and not where it
        is the output matrix, too: that has a gradient in every row.
    rates
        The learning rate of each step.
    decay
        Of weights; biases and normalisation, which are the one-dimensional ones, have none.

    Adam's step j takes lr_j c_j m_j / (√v_j + ε√(1 - β₂ʲ)) from a weight, with c_j = √(1 - β₂ʲ) / (1 - β₁ʲ). Without a
    gradient m and √v shrink by β₁ and √β₂ in each step, so that the steps s+1 to t take m_s / √v_s times the sum of
    lr_j c_j (β₁/√β₂)^(j-s). ``_tail[s]`` is that sum up to the last step of all. Most of it is taken in the first of
    these steps, so that all their decay acts on what is left. That ε grows beside a shrinking √v is left out.
    """

    def __init__(self, model: nn.Module, rates: Sequence[float], *, decay: float) -> None:
        held = [p for p in model.parameters() if p.requires_grad]
        super().__init__(
            [
                {"params": [p for p in held if p.dim() > 1], "weight_decay": decay},
                {"params": [p for p in held if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=rates[0], betas=(BETA1, BETA2), eps=EPS, fused=True,
        )  # fmt: skip
        self._rates, self._decay = rates, decay
        self.tables = [t for t in _tables(model) if t.requires_grad and t.device.type == "cpu" and len(t) >= LARGE]
        for table in self.tables:  # "moved": after which step a row is where it stands; "step": torch asks for it
            self.state[table] = {
                "exp_avg": torch.zeros_like(table), "exp_avg_sq": torch.zeros_like(table),
                "moved": torch.zeros(len(table)), "step": torch.tensor(0.0),
            }  # fmt: skip
        self._tail, self._kept = _tails(rates), np.concatenate([[0.0], np.cumsum(np.log1p(-decay * np.asarray(rates)))])

    @torch.no_grad()
    def ready(self, rows: Tensor, done: int) -> None:
        """Move these rows of every table, each given once, to where they are after ``done`` steps."""
        for table in self.tables if done else ():
            self._move(table, rows, done)

    @torch.no_grad()
    def finish(self, done: int) -> None:
        """Move all rows of every table to where they are after ``done`` steps."""
        for table in self.tables:
            self._move(table, torch.arange(len(table)), done)

    def gradients(self) -> list[Tensor]:
        """Return what the gradients hold, those of a table only for the rows that were looked up."""
        for table in self.tables:
            if table.grad is not None:
                rows = table.grad if table.grad.is_sparse else _looked_up(table.grad)
                table.grad = rows.coalesce()
        found = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return [grad.values() if grad.is_sparse else grad for grad in found]

    @torch.no_grad()
    def step_to(self, step: int) -> None:
        """Take a step, counted from 1, with the gradients that ``gradients`` has returned, and forget them.

        After the last one every row of every table is where it ends.
        """
        for group in self.param_groups:
            group["lr"] = self._rates[step - 1]
        for table in self.tables:
            if table.grad is not None:
                self._take(table, table.grad, step)
                table.grad = None
        self.step()
        self.zero_grad(set_to_none=True)
        if step == len(self._rates):
            self.finish(step)

    def _move(self, table: Tensor, rows: Tensor, done: int) -> None:
        state = self.state[table]
        since = state["moved"][rows].long()
        behind = since < done
        if not bool(behind.any()):
            return
        rows, since = rows[behind], since[behind]
        age = (done - since).double()
        start = since.numpy()
        total = self._tail[start] - (BETA1 / math.sqrt(BETA2)) ** age.numpy() * self._tail[done]
        kept = np.exp(self._kept[done] - self._kept[start])
        m, v = state["exp_avg"][rows], state["exp_avg_sq"][rows]
        small = EPS * torch.sqrt(1.0 - BETA2 ** since.double())
        under = v.sqrt().add_(small.clamp_min(1e-30).to(v.dtype)[:, None])
        taken = m / under * torch.from_numpy(total).to(table.dtype)[:, None]
        table[rows] = (table[rows] - taken) * torch.from_numpy(kept).to(table.dtype)[:, None]
        state["exp_avg"][rows] = m * (BETA1**age).to(m.dtype)[:, None]
        state["exp_avg_sq"][rows] = v * (BETA2**age).to(v.dtype)[:, None]
        state["moved"][rows] = float(done)

    def _take(self, table: Tensor, grad: Tensor, step: int) -> None:
        """Take AdamW's step for the rows that have a gradient, which are where the step before has left them."""
        state, lr = self.state[table], self._rates[step - 1]
        rows, g = grad.indices()[0], grad.values()
        m = state["exp_avg"][rows].lerp_(g, 1.0 - BETA1)
        v = state["exp_avg_sq"][rows].mul_(BETA2).addcmul_(g, g, value=1.0 - BETA2)
        under = v.sqrt().div_(math.sqrt(1.0 - BETA2**step)).add_(EPS)
        weights = table[rows].mul_(1.0 - lr * self._decay)
        table[rows] = weights.addcdiv_(m, under, value=-lr / (1.0 - BETA1**step))
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = m, v
        state["moved"][rows] = float(step)


def _tables(model: nn.Module) -> list[Tensor]:
    if isinstance(model, PreTrainedModel):
        words, output = model.get_input_embeddings(), model.get_output_embeddings()
        tied = output is not None and output.weight is words.weight
        return [words.weight] if isinstance(words, nn.Embedding) and not tied else []
    return [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]


def _looked_up(grad: Tensor) -> Tensor:
    """Return the rows of a dense gradient that are not zero."""
    rows = grad.any(dim=1).nonzero()[:, 0]
    return torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape, check_invariants=False)


def _tails(rates: Sequence[float]) -> np.ndarray:
    """Return, for each number s of steps done, the sum over later steps j of lr_j c_j (β₁/√β₂)^(j-s)."""
    shrinks = BETA1 / math.sqrt(BETA2)
    tails = np.zeros(len(rates) + 1)
    for j in range(len(rates), 0, -1):
        own = rates[j - 1] * math.sqrt(1.0 - BETA2**j) / (1.0 - BETA1**j)
        tails[j - 1] = shrinks * (own + tails[j])
    return tails
