"""The processes that train together: this one alone, or those that `torchrun` started.

accelerate makes the process group, wraps the model for data parallelism and feeds the trackers; FSDP2 and its
checkpoints are torch's own. Nothing outside of this file knows them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.shards import Shard
from codeprior.states import TENSORS, States, read_whole

Result = TypeVar("Result")


class Team:
    """The processes of a run.

    Parameters
    ----------
    device : str
        Name of what to compute on; of several processes on CUDA devices each takes that of its LOCAL_RANK.
    sharded : bool
        Whether each process holds a share of the weights (FSDP2), not all of them (DDP).
    log_with : sequence of str
        accelerate's trackers that metrics go to, where the main process runs.
    folder : Path
        Where trackers write.

    Raises
    ------
    InputError
        If the environment is not that of `torchrun`, there is nobody to share the weights with, or a tracker is not
        installed.
    """

    def __init__(
        self, device: str, *, sharded: bool = False, log_with: Sequence[str] = (), folder: Path = Path()
    ) -> None:
        shard = Shard.from_environment()
        self.rank, self.size, self.sharded = shard.rank, shard.size, sharded
        _check_environment(device, shard, sharded)
        self.device = resolve_device(device)
        missing = sorted(set(log_with) - {str(tracker) for tracker in get_available_trackers()})
        if missing:
            raise InputError(f"cannot log with {missing[0]}: it is not installed; pip install {missing[0]}")
        if self.device.type == "cuda" and shard.alone:
            torch.cuda.set_device(self.device)
        AcceleratorState._reset_state()  # it remembers the precision and the device of an earlier run in this process
        self._accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no",  # autocast is ours: it holds for validation too
            device_placement=False,
            log_with=list(log_with) or None,
            project_dir=folder,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        kind = self._accelerator.distributed_type
        if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            raise InputError(f"accelerate was set up for {kind.value}; start with torchrun, and give --shard for FSDP")
        if not shard.alone:
            self.device = self._accelerator.device
        # of its own on CPU, so that what processes agree on waits for no GPU
        self._group = None if shard.alone else dist.new_group(backend="gloo")

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is one of."""
        return self.rank == 0

    def together(self, work: Callable[[], Result]) -> Result:
        """Do some work, each process its own, and go on if it went well in all.

        If it fails in some, the first of those raises what it met; the others end in silence, with exit code 2.
        """
        if self._group is None:
            return work()
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        first = torch.tensor(self.size if failure is None else self.rank)
        dist.all_reduce(first, dist.ReduceOp.MIN, self._group)
        if failure is not None and first == self.rank:
            raise failure
        if first < self.size:
            raise SystemExit(2)
        return result

    def main_does(self, work: Callable[[], Result]) -> Result | None:
        """Let the main process do some work, while the others wait; None there."""
        return self.together(lambda: work() if self.is_main else None)

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return int(max(self.gather(number)))

    def gather(self, number: float) -> list[float]:
        """All processes' numbers."""
        if self._group is None:
            return [number]
        numbers = [torch.zeros(1, dtype=torch.float64) for _ in range(self.size)]
        dist.all_gather(numbers, torch.tensor([number], dtype=torch.float64), self._group)
        return [float(x) for x in numbers]

    def place(self, model: nn.Module, blocks: Iterable[nn.Module], precision: str, *methods: str) -> None:
        """Bring a model to the device: all of it, or this process's share of each block and of the rest.

        Of the latter, `forward` and the methods of these names may be called.

        A block's weights are fetched when it is its turn: with bf16 in bf16, as its matrix products take them; and its
        gradients are summed in float32.
        """
        if not self.sharded:
            model.to(self.device)
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(self.device.type, (self.size,))
        narrow = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=narrow if precision == "bf16" else MixedPrecisionPolicy())
        fully_shard(model, mesh=mesh)
        for method in methods:
            register_fsdp_forward_method(model, method)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module to call in training: one whose backward pass averages gradients over the processes."""
        if self.size == 1 or self.sharded:
            return module
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        wrapped.broadcast_buffers = False  # type: ignore[assignment]  # they are constants
        return wrapped

    def without_averaging(self, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Leave gradients of what `parallel` gave as they are, to be averaged with those of a later part.

        Shares are averaged at once all the same: whole gradients are what there is no memory for.
        """
        no_sync: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(module)
        return contextlib.nullcontext() if self.sharded else no_sync

    def save(self, states: States, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write a state: the main process all of it, or each process its shares."""
        if not self.sharded:
            self.main_does(lambda: states.save(step, tensors, record))
            return
        try:
            self.main_does(lambda: states.begin(step))
            self.together(lambda: self._write_shares(states.begun(step), tensors))
            self.main_does(lambda: states.commit(step, record))
        except BaseException:
            states.drop(step)
            raise

    def _write_shares(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        import torch.distributed.checkpoint as dcp

        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            dcp.save(dict(tensors), storage_writer=writer, process_group=self._group)
        except dcp.api.CheckpointException as error:
            raise OSError(f"cannot write {folder}: {_first_line(error)}") from error

    def read(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors from a state, whoever wrote it: one process or several, in whatever shares."""
        if (folder / TENSORS).exists() and not self.sharded:
            read_whole(folder, tensors)
            return
        import torch.distributed.checkpoint as dcp

        try:
            with torch.no_grad():
                dcp.load(
                    dict(tensors),
                    storage_reader=dcp.HuggingFaceStorageReader(str(folder)),
                    process_group=self._group,
                    no_dist=self._group is None,
                )
        except (dcp.api.CheckpointException, OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{_first_line(error)}; is it complete?") from error

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors without shares, on the CPU of the main process; of none elsewhere. All processes take part."""
        from torch.distributed.tensor import DTensor

        gathered = {}
        for name, tensor in tensors.items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.is_main:
                gathered[name] = full.detach().cpu()
        return gathered

    def track(self, settings: Mapping[str, Any], name: str) -> None:
        """Begin a run of the trackers, if there are any."""
        if self._accelerator.log_with:
            plain = {
                key: value if isinstance(value, int | float | bool) else str(value) for key, value in settings.items()
            }
            self._accelerator.init_trackers("codeprior", plain, {"wandb": {"name": name}})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Give values to the trackers."""
        self._accelerator.log(dict(values), step)

    def log_images(self, name: str, images: np.ndarray, step: int) -> None:
        """Give images uint8 (n, H, W, 3) to those trackers that show some."""
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: images}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({name: list(images)}, step=step)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *reason: object) -> None:
        self._accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


def _check_environment(device: str, shard: Shard, sharded: bool) -> None:
    if not shard.alone and "MASTER_ADDR" not in os.environ:
        raise InputError("RANK and WORLD_SIZE are set, MASTER_ADDR is not; start several processes with torchrun")
    if not shard.alone and ":" in device:
        raise InputError(f"each of several processes takes its own device; give --device auto, not {device}")
    if sharded and shard.alone:
        raise InputError("--shard spreads the weights over several processes; start them with torchrun")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
