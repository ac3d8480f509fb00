"""From a config to what a training updates, on this process's device."""

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vmp.engine.checkpoint import snapshot
from vmp.engine.step import Learner
from vmp.models import VideoModel, build_model
from vmp.models.freeze import build_freezing
from vmp.solver import ActionLoss, build_mixing, build_optimizer, build_schedule
from vmp.utils.distributed import get_world_size


def build_learner(cfg: CfgNode) -> Learner:
    """Make model, optimizer and all else an update needs, on this process's device."""
    device = build_device(cfg)
    torch.manual_seed(cfg.RNG_SEED)
    model = build_model(cfg).to(device)
    if cfg.MODEL.CHANNELS_LAST:
        _to_channels_last(model)
    build_freezing(cfg, model)
    optimizer = build_optimizer(cfg, model)
    precision = getattr(torch, cfg.TRAIN.PRECISION)
    parallel = _parallel(model, device)
    if get_world_size() > 2:
        _settle_buckets(parallel, model, cfg.DATA.TRAIN_CROP_SIZE, device)
    return Learner(
        model=model,
        parallel=parallel,
        loss=ActionLoss(cfg.PROMPT.PENALTY, cfg.SOLVER.LABEL_SMOOTHING),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
        schedule=build_schedule(cfg),
        mixing=build_mixing(cfg),
        device=device,
        precision=precision,
        max_norm=cfg.SOLVER.CLIP_GRAD_L2NORM,
        seed=cfg.RNG_SEED,
        ema=build_ema(cfg, model),
    )


def build_ema(cfg: CfgNode, model: VideoModel) -> AveragedModel | None:
    """Make the exponential moving average of the weights, None where SOLVER.EMA_DECAY is 0."""
    if not cfg.SOLVER.EMA_DECAY:
        return None
    # its buffers, the running statistics, are those of the model
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.SOLVER.EMA_DECAY))


def build_device(cfg: CfgNode) -> torch.device:
    """Return the device of this process: its GPU, or the CPU where NUM_GPUS is 0."""
    if cfg.NUM_GPUS:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _to_channels_last(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 5:  # only these have the format; Module.to refuses the others
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


def _parallel(model: nn.Module, device: torch.device) -> nn.Module:
    if get_world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,  # the ranks' statistics are averaged at the end of each epoch
    )


def _settle_buckets(
    parallel: nn.Module, model: VideoModel, crop_size: int, device: torch.device
) -> None:
    """Let DistributedDataParallel arrange its buckets, before the first step of this process.

    It does so after the first backward pass, and the arrangement decides the order in which more
    than two ranks' gradients are summed: the first step after a resume would differ in the last
    bits from the same step of a run that was not stopped.
    """
    state = snapshot(model.state_dict())
    clip = torch.zeros(2, 3, model.clip_frames, crop_size, crop_size, device=device)
    for _ in range(2):  # arranged when the second begins
        output = parallel(clip)
        (output.logits.sum() + output.variation).backward()
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)
