"""The same decoder distilled by capgap, by TRL's GKD, and by a plain loop on whole logits.

Each gets the same teacher, student, batches and loss: the forward divergence at temperature 1, off-policy, a mean over
the targets of a step; then clipping and AdamW at a constant rate.
"""

import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, PreTrainedModel
from turns import ROOT

sys.path[:0] = [str(ROOT)]

from capgap_core import batches, lm_losses, lm_model, lm_teaching, machine, models, training  # noqa: E402
from capgap_core.kept_outputs import Kind  # noqa: E402
from capgap_core.lm_batches import LmRows  # noqa: E402
from capgap_core.lm_recipes import ALONE, LmObjective, Sizes  # noqa: E402
from capgap_core.lm_rows import Stream  # noqa: E402
from capgap_core.progress import Silent  # noqa: E402
from capgap_core.recipes import Execution  # noqa: E402
from capgap_core.records import Reference  # noqa: E402

RATE, CLIP, DECAY, SEED = 1e-4, 1.0, 0.01, 1
STEPS = 10**5
"""Of a schedule so long that its rate is constant."""
STEPS_OF_TEXT = 4
"""Steps until rows are seen again."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and where."""

    root: str
    student: dict[str, int]
    """As ``lm_recipes.Sizes`` has them."""
    teacher: dict[str, int] = field(default_factory=dict)
    """None: a model that learns from text alone."""
    vocabulary: int
    rows: int
    """Of a step."""
    length: int
    dtype: machine.Precision = "float32"
    threads: int = 1
    device: str = "cpu"
    keep: Kind | None = None
    """Of capgap: the type in which the teacher's outputs are kept; null: it is asked in every step."""
    onednn: bool = True
    """Of the others: whether fp32 products on a CPU go to oneDNN, as capgap's do, or where torch sends them."""
    checkpointing: bool = False
    """Of TRL: whether activations are computed again in the backward pass."""
    longest: int = lm_model.LONGEST
    """Of capgap: tokens of a row whose attention may be made of products of whole matrices."""

    @property
    def execution(self) -> Execution:
        """Return where it runs."""
        return Execution(root=self.root, threads=self.threads, device=self.device)

    @property
    def text(self) -> LmRows:
        """Return rows that are a document each: no row is padded, and none is cut."""
        draw = np.random.default_rng(0)
        count = STEPS_OF_TEXT * self.rows
        ids = np.minimum(draw.zipf(1.3, count * self.length), self.vocabulary - 1)
        ids[self.length - 1 :: self.length] = 0
        return LmRows(Stream(ids, np.arange(count + 1) * self.length, self.length))

    def made(self, which: str) -> Reference:
        """Return the model that the others load, too, ``student`` or ``teacher``; it is drawn once."""
        sizes = Sizes(**getattr(self, which))
        name = f"{which}-{self.vocabulary}-" + "-".join(str(size) for size in getattr(self, which).values())
        folder = Path(self.root) / name
        if not folder.exists():
            model = lm_model.scratch(sizes, vocabulary=self.vocabulary, context=self.length, end=0, seed=len(which))
            model.save_pretrained(folder / "model")
        return Reference(stage=which, identity=name, code="", digest=name, path=str(folder))

    def load(self, which: str) -> PreTrainedModel:
        """Return a model on its device, in fp32."""
        model = LlamaForCausalLM.from_pretrained(self.made(which).folder / "model", dtype=torch.float32)
        return models.moved(model, self.device)

    def order(self) -> Iterator[np.ndarray]:
        """Yield the places of each step's rows, without end."""
        for index, _ in batches.endless(self.text.lengths, batch_size=self.rows, room=None, seed=SEED):
            yield index


def told(gate: Any, case: Case, *, loss: float, norm: float) -> None:
    """Say that a step is done, with its loss and the norm of its gradient before it was clipped."""
    gate.facts.update(loss=loss, norm=norm)
    count = case.rows * case.length
    gate.step(examples=case.rows, tokens=count, places=count)


def capgap(gate: Any, given: dict[str, Any]) -> None:
    """Train as the stage pretrain does."""
    case = Case(**given)
    lm_model.LONGEST = case.longest
    execution = case.execution
    how = training.Training(
        steps=STEPS, learning_rate=RATE, batch_size=case.rows, room=None, per_epoch=STEPS_OF_TEXT,
        micro_batch=case.rows, weight_decay=DECAY, warmup=0.0, clip=CLIP, dtype=case.dtype, seed=SEED,
    )  # fmt: skip
    with machine.ready(execution, seed=SEED) as device:
        model, rows, ask = case.load("student").train(), case.text, None
        if case.teacher:
            where = lm_teaching.Keeping(execution=execution, progress=Silent(), device=device)
            ask = lm_teaching.asked(
                "llama", case.made("teacher"), rows, dtype=case.dtype, keep=case.keep, where=where
            )  # fmt: skip
        objective = LmObjective() if case.teacher else ALONE
        loss_of = lm_losses.loss_of(model, ask, objective, dtype=case.dtype)
        gate.ready(model)
        for step in training.train(model, rows, how, loss_of, device=device, stage="benchmark"):
            told(gate, case, loss=sum(step.terms.values()), norm=step.grad_norm)


def whole_logits(gate: Any, given: dict[str, Any]) -> None:
    """Train by a loop as one writes it: the whole logits of both models, torch's clipping and fused AdamW."""
    case = Case(**given)
    _threads_and_products(case)
    student, teacher, rows = case.load("student").train(), _teacher(case), case.text
    weights = [p for p in student.parameters() if p.dim() > 1]
    others = [p for p in student.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    gate.ready(student)
    for index in case.order():
        batch = rows.batch(index).to(torch.device(case.device))
        with machine.autocast(torch.device(case.device), case.dtype):
            with torch.no_grad():
                theirs = teacher(batch.input_ids).logits[:, :-1]
            ours = student(batch.input_ids, use_cache=False).logits[:, :-1]
        log_q, log_p = (F.log_softmax(z.float(), dim=-1) for z in (ours, theirs))
        loss = F.kl_div(log_q, log_p, reduction="sum", log_target=True) / log_q[..., 0].numel()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        told(gate, case, loss=loss.item(), norm=norm.item())


def trl(gate: Any, given: dict[str, Any]) -> None:
    """Train with TRL's GKDTrainer, off-policy (lmbda 0) and with the forward divergence (beta 0)."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    case = Case(**given)
    _threads_and_products(case)
    rows = case.text

    class Same(GKDTrainer):
        """Gives the batches that the others get; all else is the trainer's own."""

        def get_train_dataloader(self) -> Any:
            return _Same(case, rows)

    class Counts(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            gate.ready(student)

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            told(gate, case, loss=float(logs["loss"]), norm=float(logs["grad_norm"]))

    asked = GKDConfig(
        output_dir=str(Path(case.root) / "trl"), lmbda=0.0, beta=0.0, temperature=1.0, seq_kd=False,
        per_device_train_batch_size=case.rows, max_steps=STEPS, bf16=case.dtype == "bfloat16",
        use_cpu=case.device == "cpu", gradient_checkpointing=case.checkpointing, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=DECAY, max_grad_norm=CLIP, optim="adamw_torch_fused", report_to=[],
        save_strategy="no", logging_strategy="steps", logging_steps=1, logging_nan_inf_filter=False, disable_tqdm=True,
        max_length=case.length, seed=SEED,
    )  # fmt: skip
    random.seed(SEED)
    student = case.load("student")
    whole = Same(
        model=student, teacher_model=_teacher(case), args=asked, processing_class=_tokenizer(),
        train_dataset=Dataset.from_dict({"input_ids": [[0]]}), callbacks=[Counts()],
        data_collator=lambda rows: rows,
    )  # fmt: skip
    whole.remove_callback(PrinterCallback)
    whole.train()


class _Same:
    """capgap's own batches, without end; the first token of a row is predicted from nothing."""

    def __init__(self, case: Case, rows: LmRows) -> None:
        self._case, self._rows = case, rows

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for index in self._case.order():
            ids = self._rows.batch(index).input_ids
            labels = ids.clone()
            labels[:, 0] = -100
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _tokenizer() -> Any:
    """Return a tokenizer, which the trainer asks for and has no use for."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<end>": 0, "word": 1}, unk_token="word"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


def _threads_and_products(case: Case) -> None:
    torch.set_num_threads(case.threads)
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("medium" if case.device == "cpu" and case.onednn else "highest")


def _teacher(case: Case) -> PreTrainedModel:
    teacher = case.load("teacher").requires_grad_(False).eval()
    return teacher.to(torch.bfloat16) if case.dtype == "bfloat16" else teacher  # pyright: ignore[reportCallIssue]


WAYS = {"capgap": capgap, "whole logits": whole_logits, "trl": trl}
