"""The same student trained by capgap, by a loop around Hugging Face's Trainer, and by TextBrewer.

Each gets the same teacher, the same slimmed student, the same loss and the same data; see ``Case``.
"""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.trainer_pt_utils import LengthGroupedSampler
from turns import ROOT, Gate

sys.path[:0] = [str(ROOT)]

from capgap_core import batches, budget, machine, models, preflight, scoring, slimming, teaching, training  # noqa: E402
from capgap_core.batches import Examples  # noqa: E402
from capgap_core.chain import in_this_process  # noqa: E402
from capgap_core.distillation import Distillation, Objective  # noqa: E402
from capgap_core.losses import matched_layers  # noqa: E402
from capgap_core.minidisc import MiniDisc  # noqa: E402
from capgap_core.mixup import Mixtures, Mixup, Pupil  # noqa: E402
from capgap_core.outputs import computed  # noqa: E402
from capgap_core.progress import Silent  # noqa: E402
from capgap_core.recipes import TrainRecipe  # noqa: E402
from capgap_core.records import ModelInput  # noqa: E402
from capgap_core.training import Training  # noqa: E402

SEVEN = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
"""The scales of MiniDisc's seven candidates."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, beside the way."""

    dataset: str
    teacher: str
    root: str
    rows: int | None
    scale: float = 0.1
    batch_size: int = 32
    batches: str = "tokens"
    """How capgap cuts batches; with examples, the peers are given the same ones."""
    dtype: str = "auto"
    threads: int = 1
    epochs: float = 5.0
    teacher_epochs: float = 3.0
    seed: int = 1
    same: bool = False
    """Whether the peers are given capgap's own batches."""
    keep: str | None = "bfloat16"
    scales: tuple[float, ...] = SEVEN
    sampled: int | None = None
    whole: bool = False
    """Whether the training has its own number of steps and schedule; else it has no end."""


class Made:
    """The stages that a case begins from: made once, found again by every process."""

    def __init__(self, case: Case) -> None:
        self.case = case
        given: dict[str, Any] = {
            "dataset": case.dataset, "teacher": case.teacher, "data": {"train_rows": case.rows},
            "teacher_recipe": {"epochs": case.teacher_epochs}, "sandwich": {"grid": case.scales[:-1]},
            "student": {"scale": case.scales[-1]}, "run": {"root": case.root, "threads": case.threads},
        }  # fmt: skip
        method = MiniDisc(preflight.check(given), in_this_process(Silent()))
        self.data = method.data()
        self.teacher = method.teacher(self.data)
        self.importance = method.importance(self.data, self.teacher)
        self.adapter, self.execution, self.costs = models.family("bert"), method.p.run, method._costs
        self.device = machine.device_of(self.execution)
        self.examples = scoring.examples(self.data, "train")
        self.shape = method._shape
        assert self.shape is not None
        asked = TrainRecipe.model_validate(
            {"epochs": case.epochs, "batch_size": case.batch_size, "dtype": case.dtype, "batches": case.batches}
        )
        self.training: Training = budget.resolve(
            asked, "student", lengths=self.examples.lengths, hidden=self.shape.hidden, scratch=False,
            protocol="capgap", dtype=machine.precision(asked.dtype, self.device, hidden=self.shape.hidden),
            seed=case.seed,
        )  # fmt: skip

    def student(self, scale: float) -> Any:
        """Return the slimmed student."""
        return models.load(self.adapter, ModelInput(reference=self.importance, scale=scale)).train()


def capgap(gate: Gate, given: dict[str, Any]) -> None:
    """Train one student as the stage distil does."""
    case, made = Case(**given), Made(Case(**given))
    with machine.ready(made.execution, seed=case.seed):
        student = made.student(case.scale)
        way = computed(made.adapter, student, made.training.dtype, made.device)
        loss_of = _distillation(case, made).loss_of(way)
        _steps(gate, made, student, loss_of)


def mixing(gate: Gate, given: dict[str, Any]) -> None:
    """Train a student of the teacher's first layers as the stage distil does for an arm of mixkd."""
    from capgap_core.mixkd import WAYS

    arm, case = given["arm"], Case(**given["case"])
    made, way = Made(case), WAYS[arm]
    with machine.ready(made.execution, seed=case.seed) as device:
        held, theirs = teaching.frozen("bert", ModelInput(reference=made.teacher), made.training, device)
        whole = models.load(made.adapter, made.teacher)
        student = models.moved(made.adapter.first_layers(whole, made.shape.layers // 2), device).train()
        ours = computed(made.adapter, student, made.training.dtype, device)
        ask = teaching.asked(
            "bert", ModelInput(reference=made.teacher), made.examples, made.training, keep=case.keep, hidden=False,
            execution=made.execution, progress=Silent(),
        )  # fmt: skip
        objective = Objective(labels=1.0, hidden=0.0, prediction=1.0, distance="mse")
        loss = Distillation(ask, layers=made.shape.layers, regression=False, objective=objective)
        loss_of = loss.loss_of(ours)
        if way.mixes:
            how = Mixup(
                samples=1, alpha=0.4, mix=None, per="pair", mask="soft", labels=float(way.mixed_labels),
                teacher=float(way.mixed_teacher), seed=case.seed,
            )  # fmt: skip
            pupils = Pupil.of(ours, student, made.adapter.TYPES), Pupil.of(theirs, held, made.adapter.TYPES)
            loss_of = Mixtures(how, *pupils, loss, regression=False).added_to(loss_of)
        _steps(gate, made, student, loss_of)


def filling(gate: Gate, given: dict[str, Any]) -> None:
    """Ask the teacher for all examples and keep what it says, as the first stage that learns from it does."""
    case, made = Case(**given), Made(Case(**given))
    with machine.ready(made.execution, seed=case.seed):
        gate.ready(dtype=made.training.dtype)
        for kept in (Path(case.root) / "targets").glob("*"):
            shutil.rmtree(kept)
        _distillation(case, made)
        tokens = int(made.examples.lengths.sum())
        gate.step(examples=len(made.examples), tokens=tokens, places=tokens)


def sandwich(gate: Gate, given: dict[str, Any]) -> None:
    """Train all candidates at once, as the stage sandwich does."""
    from capgap_core.stages import sandwich as stage

    case, made = Case(**given), Made(Case(**given))
    with machine.ready(made.execution, seed=case.seed):
        model = models.load(made.adapter, made.importance).train()
        prefixes = slimming.Prefixes(made.adapter, model, made.shape, models.plans_of(made.importance))
        way = computed(made.adapter, model, made.training.dtype, made.device)
        recipe = stage.Recipe(
            family="bert", scales=case.scales, mode="all" if case.sampled is None else "sampled",
            random=case.sampled or 0, objective=Objective(), keep=case.keep, training=made.training,
        )  # fmt: skip
        loss_of = _distillation(case, made).sandwich_of(way, prefixes, stage._drawn(recipe), dtype=made.training.dtype)
        _steps(gate, made, model, loss_of)


def teacher(gate: Gate, given: dict[str, Any]) -> None:
    """Fine-tune the teacher, as the stage teacher does."""
    from capgap_core import steps

    case, made = Case(**given), Made(Case(**given))
    with machine.ready(made.execution, seed=case.seed):
        model = models.load(made.adapter, ModelInput(reference=made.teacher)).train()
        loss_of = steps.task_loss(computed(made.adapter, model, made.training.dtype, made.device), made.data)
        _steps(gate, made, model, loss_of)


def _distillation(case: Case, made: Made) -> Distillation:
    ask = teaching.asked(
        "bert", ModelInput(reference=made.teacher), made.examples, made.training, keep=case.keep,
        execution=made.execution, progress=Silent(),
    )  # fmt: skip
    return Distillation(ask, layers=made.shape.layers, regression=False, objective=Objective())


def _steps(gate: Gate, made: Made, model: Any, loss_of: Any) -> None:
    how = made.training if made.case.whole else made.training.model_copy(update={"steps": 10**6})
    places: list[int] = []

    def counted(batch: batches.Batch, step: int) -> Any:
        places.append(batch.room)
        return loss_of(batch, step)

    gate.ready(model, dtype=how.dtype, room=how.room, per_epoch=how.per_epoch)
    before = 0
    order = batches.endless(made.examples.lengths, batch_size=how.batch_size, room=how.room, seed=how.seed)
    taken = training.train(
        model, made.examples, how, counted, device=made.device, stage="benchmark", keeper=gate.keeper
    )
    for step in taken:
        index, _ = next(order)
        gate.step(examples=len(index), tokens=step.tokens - before, places=sum(places))
        before = step.tokens
        places.clear()


def trainer(gate: Gate, given: dict[str, Any]) -> None:
    """Train one student with Hugging Face's Trainer, as a competent user writes it.

    Dynamic padding, batches grouped by length, bf16 autocast, fused AdamW; the teacher in bf16, without gradients.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    case, made = Case(**given), Made(Case(**given))
    _like_capgap(case, made)
    held, student = _teacher(made), made.student(case.scale)
    layers = matched_layers(made.shape.layers)
    seen = {"examples": 0, "tokens": 0, "places": 0}

    class Distils(Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            inputs.pop("labels")
            with torch.no_grad():
                theirs = held(**inputs, output_hidden_states=True)
            ours = model(**inputs, output_hidden_states=True)
            loss = _loss(ours, theirs, inputs["attention_mask"].bool(), layers)
            return (loss, ours) if return_outputs else loss

        def get_train_dataloader(self) -> Any:
            return _Same(made, case) if case.same else super().get_train_dataloader()

    class Counts(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            gate.ready(student, dtype=made.training.dtype)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            gate.step(**seen)

    def collated(rows: list[int]) -> dict[str, Any]:
        batch = made.examples.batch(rows)
        return {**batch.named(made.adapter.INPUTS), "labels": batch.labels}

    class Counted(Distils):
        def _get_train_sampler(self, *_: Any) -> Any:
            return _Grouped(made, case)

        def training_step(self, model: nn.Module, inputs: Any, *others: Any) -> Any:
            mask = inputs["attention_mask"]
            seen.update(examples=len(mask), tokens=int(mask.sum()), places=mask.numel())
            return super().training_step(model, inputs, *others)

    how = made.training
    steps = round(case.epochs * -(-len(made.examples) // case.batch_size)) if case.whole else 10**6
    warm = round(how.warmup * steps) if case.whole else 50
    arguments = TrainingArguments(
        output_dir=str(Path(case.root) / "trainer"), per_device_train_batch_size=case.batch_size, max_steps=steps,
        bf16=how.dtype == "bfloat16", use_cpu=made.device.type == "cpu", report_to=[], save_strategy="no",
        logging_strategy="no", learning_rate=how.learning_rate, warmup_steps=warm, max_grad_norm=how.clip,
        weight_decay=how.weight_decay, optim="adamw_torch_fused", disable_tqdm=True, remove_unused_columns=False,
        seed=case.seed,
    )  # fmt: skip
    whole = Counted(
        model=student, args=arguments, train_dataset=_Rows(made), data_collator=collated, callbacks=[Counts()]
    )
    whole.train()


def textbrewer(gate: Gate, given: dict[str, Any]) -> None:
    """Train one student with TextBrewer's GeneralDistiller: matched hidden states and soft cross-entropy."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    case, made = Case(**given), Made(Case(**given))
    _like_capgap(case, made)
    held, student = _teacher(made), made.student(case.scale)
    half = made.training.dtype == "bfloat16"
    layers = matched_layers(made.shape.layers)
    matches = [
        {"layer_T": i, "layer_S": i, "feature": "hidden", "loss": "hidden_mse", "weight": 0.5 / len(layers)}
        for i in layers
    ]

    class Autocast(nn.Module):
        """Runs a model as a user of bf16 wraps it; the library itself knows only Apex."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: Any) -> Any:
            with torch.autocast(made.device.type, dtype=torch.bfloat16, enabled=half):
                return self.inner(**inputs, output_hidden_states=True)

    def adapted(batch: Any, output: Any) -> dict[str, Any]:
        states = tuple(state.float() for state in output.hidden_states)
        return {"logits": (output.logits.float(),), "hidden": states, "inputs_mask": batch["attention_mask"]}

    class Gated:
        def __iter__(self) -> Iterator[Any]:
            gate.ready(dtype=made.training.dtype)
            for batch in _Same(made, case):
                batch.pop("labels")
                yield batch
                mask = batch["attention_mask"]
                gate.step(examples=len(mask), tokens=int(mask.sum()), places=mask.numel())

    how = made.training
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=how.learning_rate, weight_decay=how.weight_decay, fused=True)
    distiller = GeneralDistiller(
        train_config=TrainingConfig(device=made.device, log_dir=None, ckpt_steps=10**6),
        distill_config=DistillationConfig(temperature=1, kd_loss_weight=0.5, intermediate_matches=matches),
        model_T=Autocast(held), model_S=Autocast(student), adaptor_T=adapted, adaptor_S=adapted,
    )  # fmt: skip
    with distiller:
        distiller.train(optimizer, Gated(), num_steps=10**6, max_grad_norm=how.clip)


def _like_capgap(case: Case, made: Made) -> None:
    """Set threads and the library of fp32 products as capgap does: what is compared is not that."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(case.seed)
    if made.device.type == "cpu":
        torch.set_float32_matmul_precision("medium")


def _teacher(made: Made) -> nn.Module:
    held = models.moved(models.load(made.adapter, ModelInput(reference=made.teacher)), made.device)
    held.requires_grad_(False).eval()
    return held.to(torch.bfloat16) if made.training.dtype == "bfloat16" else held


def _loss(ours: Any, theirs: Any, keep: torch.Tensor, layers: tuple[int, ...]) -> torch.Tensor:
    pairs = [(ours.hidden_states[i][keep].float(), theirs.hidden_states[i][keep].float()) for i in layers]
    hidden = torch.stack([F.mse_loss(a, b) for a, b in pairs]).mean()
    log_q, log_p = (F.log_softmax(output.logits.float(), dim=-1) for output in (ours, theirs))
    return 0.5 * (hidden + F.kl_div(log_q, log_p, reduction="batchmean", log_target=True))


class _Rows(torch.utils.data.Dataset[int]):
    """The places of the examples."""

    def __init__(self, made: Made) -> None:
        self._count = len(made.examples)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        return place


class _Grouped(torch.utils.data.Sampler[int]):
    """What the Trainer's group_by_length draws."""

    def __init__(self, made: Made, case: Case) -> None:
        self._lengths, self._size = made.examples.lengths.tolist(), case.batch_size

    def __iter__(self) -> Iterator[int]:
        return iter(LengthGroupedSampler(self._size, lengths=self._lengths))

    def __len__(self) -> int:
        return len(self._lengths)


class _Same:
    """Capgap's own batches, without end."""

    def __init__(self, made: Made, case: Case) -> None:
        self._examples: Examples = made.examples
        self._inputs = made.adapter.INPUTS
        self._how = made.training

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Iterator[dict[str, Any]]:
        how = self._how
        for index, _ in batches.endless(
            self._examples.lengths, batch_size=how.batch_size, room=how.room, seed=how.seed
        ):
            batch = self._examples.batch(np.asarray(index))
            yield {**batch.named(self._inputs), "labels": batch.labels}
