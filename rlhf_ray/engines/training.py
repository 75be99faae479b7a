"""One DeepSpeed engine: a module, its optimizer and the ranks that share them. The only file that imports deepspeed.

Gradients are of sums over the *global* minibatch: a caller gives each micro-batch's loss as a sum and the weight of the
whole minibatch, so that no split into ranks and micro-batches changes the step.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed
from torch import Tensor, nn

from rlhf_ray.algo.schedule import learning_rate_factor
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.engines.export import WeightExport, write_pretrained
from rlhf_ray.engines.models import DTYPES, WrappedModel
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.training_masters import masters_of
from rlhf_ray.engines.training_state import Masters, load_engine_state, save_engine_state
from rlhf_ray.errors import NumericsError

# Gradients are reduced in buffers of this many elements (DeepSpeed's own 5e8 would be 2 GB in float32 for each engine).
BUCKET_ELEMENTS = 50_000_000
# ZeRO-3 leaves smaller parameters (norms, biases) whole on every rank: gathering them costs more than they do.
WHOLE_PARAMETER_ELEMENTS = 10_000


def join_group(info: RankInfo, config: TrainingConfig) -> None:
    """Join the trainer's process group: NCCL on GPUs, gloo on CPU. Blocks until every rank is there or time is up.

    Ranks that stand in a group already, from an earlier stage, stay in it.
    """
    import deepspeed

    # DeepSpeed calls what torch is about to rename, at every step: nothing that a user could do about.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..* is deprecated", category=FutureWarning)
    # An operation for inference that training never calls; on CPU the first start would compile it for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    host, _, port = info.address.rpartition(":")
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=port, RANK=str(info.rank), WORLD_SIZE=str(info.world_size))
    torch.set_num_threads(config.threads_per_rank)
    if torch.distributed.is_initialized():
        return
    if info.device == "cuda":
        torch.cuda.set_device(0)
    deepspeed.init_distributed(
        dist_backend="nccl" if info.device == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=config.timeout_s),
        rank=info.rank,
        world_size=info.world_size,
    )


def leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


@contextmanager
def sharded_loading(config: TrainingConfig) -> Iterator[None]:
    """Under ZeRO-3, ``from_pretrained`` inside this context never holds a whole model on any rank."""
    if config.zero_stage < 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    keep_alive = HfDeepSpeedConfig(deepspeed_config(config))
    try:
        yield
    finally:
        del keep_alive


def deepspeed_config(config: TrainingConfig) -> dict[str, Any]:
    """DeepSpeed's dictionary for ``config``. Accumulation is ours: a step is a boundary whenever we call it.

    In bfloat16 the optimizer's weights and the sums of gradients are float32. Stage 0 is then run as stage 1:
    DeepSpeed's optimizer for bfloat16 without ZeRO sums up in bfloat16, and counts a step of Adam before the first.
    """
    stage = config.zero_stage if config.dtype == "float32" else max(1, config.zero_stage)
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = WHOLE_PARAMETER_ELEMENTS
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if _is_plain(config) else config.gradient_clipping,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 1_000_000_000,
    }


def _is_plain(config: TrainingConfig) -> bool:
    """Whether DeepSpeed hands the torch optimizer through as it is: then it neither reports nor checks the norm."""
    return config.zero_stage == 0 and config.dtype == "float32"


class TrainingEngine:
    """A module under DeepSpeed with the verbs that the stages use."""

    def __init__(
        self,
        *,
        module: WrappedModel,
        info: RankInfo,
        config: TrainingConfig,
        optimizer: OptimizerConfig,
        num_steps: int,
    ) -> None:
        import deepspeed

        self.info = info
        self.config = config
        self.optimizer_config = optimizer
        self.num_steps = num_steps
        self.steps_taken = 0
        self.module = module
        module.packed = config.layout == "packed"
        if config.gradient_checkpointing:
            module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if config.lora.enabled:
                module.model.enable_input_require_grads()
        self._trainable = [p for p in module.parameters() if p.requires_grad]
        self._plain_norm = math.nan
        self._loss_check = torch.zeros((), device=info.torch_device)
        adam = self._make_optimizer(self._trainable)
        with redirect_stdout(io.StringIO()):  # its optimizer for bfloat16 prints memory reports
            self.engine, *_ = deepspeed.initialize(model=module, optimizer=adam, config=deepspeed_config(config))
        self.engine.train()  # models are loaded in evaluation mode, which turns checkpointing off
        if _is_plain(config):
            adam.register_step_pre_hook(self._clip_plain_gradients)

    def _make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        o = self.optimizer_config
        arguments: dict[str, Any] = {
            "lr": o.learning_rate,
            "betas": (o.beta1, o.beta2),
            "eps": o.epsilon,
            "weight_decay": o.weight_decay,
        }
        if self.config.offload_optimizer and self.info.device == "cuda":
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            offloaded: torch.optim.Optimizer = DeepSpeedCPUAdam(parameters, **arguments)
            return offloaded
        return torch.optim.AdamW(parameters, fused=self.info.device == "cuda", **arguments)

    # ---------------------------------------------------------------------------------------------------------- verbs
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module; gradients are kept unless inside ``torch.no_grad``."""
        return self.engine(*args, **kwargs)

    def backward(self, loss_sum: Tensor, global_weight: float) -> None:
        """Add the gradient of ``loss_sum / global_weight``. DeepSpeed averages over ranks: that is undone here."""
        loss = loss_sum * (self.info.world_size / max(global_weight, 1e-12))
        self._loss_check += 0.0 * loss.detach()  # NaN from the first loss on that is not finite
        self.engine.backward(loss)

    def step(self) -> float:
        """Clip, update, zero the gradients; return the norm of the whole gradient before clipping.

        Raises NumericsError on every rank when a loss of any rank or the norm is not finite; the weights are then
        those of before the step.
        """
        number = self.steps_taken + 1
        if not math.isfinite(float(all_reduce_sum(self._loss_check))):
            raise NumericsError(f"the loss is not finite in optimizer step {number}; the weights are left as they were")
        self._set_learning_rate()
        try:
            self.engine.step()
        finally:
            # DeepSpeed resets it at the end of a step alone; left set, every later backward pass would be a boundary.
            self.engine._running_engine_step = False
        norm = self._plain_norm if _is_plain(self.config) else float(self.engine.get_global_grad_norm())
        if not self.engine.was_step_applied() or not math.isfinite(norm):
            self._refuse(number, norm)
        self.steps_taken = number
        return norm

    def discard_gradients(self) -> None:
        """Forget what backward passes have added up since the last step: the next one starts from nothing.

        Every rank must call it, after a step that was refused or in place of one.
        """
        from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

        self._loss_check.zero_()
        self.engine.zero_grad()  # what is not reduced yet: all of stage 0, and stage 1
        optimizer = self.engine.optimizer
        optimizer.zero_grad()  # ZeRO-3: the next backward pass now overwrites the sums of its share
        if _is_plain(self.config) or isinstance(optimizer, BF16_Optimizer):
            return
        if deepspeed_config(self.config)["zero_optimization"]["stage"] == 3:
            optimizer.averaged_gradients = {}
            optimizer._offload_boundary_param_ids = set()
        else:
            for group in optimizer.averaged_gradients:  # stage 2 adds its share up in one of these
                optimizer.averaged_gradients[group] = None
            for group in optimizer.all_grad_tensors:
                optimizer.all_grad_tensors[group] = None
            optimizer.micro_step_id = -1  # with offload: the next backward pass overwrites the sums on the host
            optimizer._offload_accumulated_param_ids = set()
        if self.config.offload_optimizer:
            optimizer.reset_cpu_buffers()

    @contextmanager
    def watched_gradients(self) -> Iterator[set[str]]:
        """Collect the names of parameters whose gradient on this rank is not finite in the backward passes inside."""
        found: set[str] = set()

        def watch(name: str, gradient: Tensor) -> None:
            if not bool(torch.isfinite(gradient).all()):
                found.add(name)

        named = self.module.named_parameters()
        hooks = [p.register_hook(partial(watch, name)) for name, p in named if p.requires_grad]  # type: ignore[no-untyped-call]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def parameter_names(self) -> list[str]:
        """The names of the parameters, in the order of the model."""
        return [name for name, _ in self.module.named_parameters()]

    def _clip_plain_gradients(self, *_: object) -> None:
        """Clip as DeepSpeed does where it has an optimizer of its own; runs right before the update."""
        limit = self.config.gradient_clipping or math.inf
        self._plain_norm = float(torch.nn.utils.clip_grad_norm_(self._trainable, limit))
        if not math.isfinite(self._plain_norm):
            self._refuse(self.steps_taken + 1, self._plain_norm)

    def _refuse(self, number: int, norm: float) -> NoReturn:
        raise NumericsError(
            f"the gradient's norm is {norm} in optimizer step {number}; the weights are left as they were"
        )

    @property
    def learning_rate(self) -> float:
        """The rate of the next optimizer step."""
        o = self.optimizer_config
        return o.learning_rate * learning_rate_factor(
            step=self.steps_taken,
            num_steps=self.num_steps,
            warmup_steps=round(o.warmup_fraction * self.num_steps),
            decay=o.decay,
            floor=o.floor,
        )

    def _set_learning_rate(self) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.learning_rate

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, evaluation mode."""
        self.engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.engine.train()

    # -------------------------------------------------------------------------------------------------------- weights
    def export(self, dtype: str) -> WeightExport:
        """The weights under their Hugging Face names, adapters merged. Walk it on every rank."""
        return WeightExport(self.module.model, DTYPES[dtype], self._gather())

    def _gather(self) -> Callable[[Sequence[nn.Parameter]], AbstractContextManager[object]]:
        if self.config.zero_stage < 3:
            return lambda _parameters: nullcontext()
        import deepspeed

        return lambda parameters: deepspeed.zero.GatheredParameters(list(parameters))

    def save_pretrained(self, directory: Path, dtype: str | None = None) -> None:
        """Write a Hugging Face checkpoint (safetensors) from rank 0; every rank must call it."""
        export = self.export(dtype or self.config.dtype)
        state = {}
        for name, tensor in export.tensors([meta.name for meta in export.metas]):
            if self.info.rank == 0:
                state[name] = tensor.detach().to("cpu", copy=True)
        if self.info.rank == 0:
            write_pretrained(self.module.model, state, directory, adapters=self.config.lora.enabled)

    def save_state(self, directory: Path, tag: str) -> None:
        """Write parameters and optimizer under ``directory/tag``, whole and by name; every rank must call it."""
        save_engine_state(
            directory / tag,
            self._named_trainable(),
            self._masters(),
            rank=self.info.rank,
            world_size=self.info.world_size,
            facts={"steps_taken": self.steps_taken},
        )

    def load_state(self, directory: Path, tag: str) -> None:
        """Restore what :meth:`save_state` wrote, by any number of ranks and ZeRO stage. ConfigError where it is not."""
        facts = load_engine_state(directory / tag, self._named_trainable(), self._masters())
        self.steps_taken = int(facts["steps_taken"])
        self._set_learning_rate()

    def _named_trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def _masters(self) -> Masters:
        return masters_of(self.engine, plain=_is_plain(self.config))
