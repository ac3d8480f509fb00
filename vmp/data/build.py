"""From cfg to a loader; the only file here that reads cfg."""

import logging
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from vmp.data.clips import ClipDataset, OpenVideo
from vmp.data.decode import VideoReader
from vmp.data.loader import ClipLoader, EvalPlan, Plan, TrainPlan
from vmp.data.records import CLASS_NAMES, DATASETS, VideoRecord, quarantine, read_quarantine
from vmp.data.release import FRAME_INDEX_FOLDER
from vmp.data.sampling import PickFrames, RandomClip, SpacedClips
from vmp.data.transforms import RandomCrop, Transform, ViewCrop

logger = logging.getLogger(__name__)

# Items in a row that are tried in place of a training clip that can't be decoded. So many broken
# files side by side are a wrong folder, not bad luck.
REPLACEMENTS = 16


def build_loader(cfg: CfgNode, split: str, rank: int = 0, world_size: int = 1) -> ClipLoader:
    """Make the loader of one rank.

    Args:
        cfg: DATA, DATA_LOADER, TRAIN, TEST, PROMPT.ENABLE, MODEL.NUM_CLASSES, RNG_SEED, NUM_GPUS.
        split: "train"; "test", all views of the test split; "val", the test split by its first
            clip and centre crop alone.
        rank: from 0.
        world_size: ranks.

    Raises:
        ValueError: an unknown split or data set, missing files, a label outside
            [0, MODEL.NUM_CLASSES), or numbers that do not go together.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split {split!r} is not known; there are: train, val, test")
    records = build_records(cfg, "train" if split == "train" else "test")
    class_names = build_class_names(cfg)
    num_frames = cfg.DATA.NUM_FRAMES + (1 if cfg.PROMPT.ENABLE else 0)
    plan: Plan
    if split == "train":
        pick_frames, transform = build_train_view(cfg, num_frames)
        size, num_views, replacements = cfg.DATA.TRAIN_CROP_SIZE, 1, REPLACEMENTS
        plan = TrainPlan(
            len(records),
            cfg.TRAIN.BATCH_SIZE,
            seed=cfg.RNG_SEED,
            rank=rank,
            world_size=world_size,
        )
    else:
        num_clips, num_crops = (1, 1) if split == "val" else build_view_counts(cfg)
        pick_frames, transform = build_test_view(cfg, num_frames, num_clips, num_crops)
        size, num_views, replacements = cfg.DATA.TEST_CROP_SIZE, num_clips * num_crops, 0
        plan = EvalPlan(
            len(records) * num_views,
            cfg.TEST.BATCH_SIZE,
            rank=rank,
            world_size=world_size,
            num_workers=cfg.DATA_LOADER.NUM_WORKERS,
        )
    dataset = ClipDataset(
        records,
        num_views=num_views,
        pick_frames=pick_frames,
        transform=transform,
        seed=cfg.RNG_SEED,
        replacements=replacements,
        open_video=build_reader(cfg),
    )
    return ClipLoader(
        dataset,
        plan,
        clip_shape=(3, num_frames, size, size),
        class_names=class_names,
        num_workers=cfg.DATA_LOADER.NUM_WORKERS,
        pin_memory=cfg.DATA_LOADER.PIN_MEMORY and cfg.NUM_GPUS > 0 and torch.cuda.is_available(),
        prefetch_factor=cfg.DATA_LOADER.PREFETCH_FACTOR,
    )


def build_reader(cfg: CfgNode) -> OpenVideo:
    """Return what opens a video."""
    folder = cfg.DATA.FRAME_INDEX_DIR or Path(cfg.DATA.PATH_TO_DATA_DIR, FRAME_INDEX_FOLDER)
    return partial(
        VideoReader,
        backend=cfg.DATA.DECODING_BACKEND,
        index_dir=folder,
        timeout=cfg.DATA.DECODE_TIMEOUT,
    )


def build_records(cfg: CfgNode, split: str) -> list[VideoRecord]:
    """List the videos of "train" or "test" that a loader takes, labels checked.

    What is absent or in quarantine is left out of the training, and said; in a test it stays,
    marked, so that it is counted as not evaluated.

    Raises:
        ValueError: an unknown data set, missing files, no videos, or a label outside
            [0, MODEL.NUM_CLASSES).
    """
    records = build_official_records(cfg, split)
    if split == "train":
        records = _usable(records)
    if not records:
        raise ValueError(f"{cfg.DATA.PATH_TO_DATA_DIR} has no {split} videos; check the folder")
    for record in records:
        if not 0 <= record.label < cfg.MODEL.NUM_CLASSES:
            raise ValueError(
                f"{record.path}: class {record.label} is not in 0 to {cfg.MODEL.NUM_CLASSES - 1}; "
                f"correct the list or set MODEL.NUM_CLASSES"
            )
    return records


def build_official_records(cfg: CfgNode, split: str) -> list[VideoRecord]:
    """List all of "train" or "test" of the data set TRAIN.DATASET, what is in quarantine marked.

    Raises:
        ValueError: an unknown data set, or missing files.
    """
    dataset = DATASETS.get(cfg.TRAIN.DATASET)
    records: list[VideoRecord] = dataset(cfg.DATA.PATH_TO_DATA_DIR, split, cfg.DATA.SPLIT)
    if cfg.DATA.QUARANTINE:
        records = quarantine(records, read_quarantine(cfg.DATA.QUARANTINE))
    return records


def _usable(records: list[VideoRecord]) -> list[VideoRecord]:
    usable = [record for record in records if not record.excluded]
    if len(usable) < len(records):
        reasons = Counter(record.excluded.partition(":")[0] for record in records)
        del reasons[""]
        counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        logger.warning(
            "training on %d of %d official records: %s", len(usable), len(records), counted
        )
    return usable


def build_class_names(cfg: CfgNode) -> tuple[str, ...]:
    """Return the MODEL.NUM_CLASSES names, or their numbers where the data set has no names.

    Raises:
        ValueError: the data set has another number of classes than the model.
    """
    name_classes = CLASS_NAMES.get(cfg.TRAIN.DATASET)
    names: tuple[str, ...] = name_classes(cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.SPLIT)
    if not names:
        return tuple(str(label) for label in range(cfg.MODEL.NUM_CLASSES))
    if len(names) != cfg.MODEL.NUM_CLASSES:
        raise ValueError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, data set {cfg.TRAIN.DATASET!r} has "
            f"{len(names)} classes; set it to that"
        )
    return names


def build_train_view(cfg: CfgNode, num_frames: int) -> tuple[PickFrames, Transform]:
    """Return how training clips are picked and cut."""
    clip = RandomClip(num_frames, cfg.DATA.SAMPLING_RATE, cfg.DATA.TARGET_FPS, cfg.DATA.SHORT_CLIP)
    low, high = cfg.DATA.TRAIN_JITTER_SCALES
    return clip, RandomCrop((low, high), cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.RANDOM_FLIP)


def build_test_view(
    cfg: CfgNode, num_frames: int, num_clips: int, num_crops: int
) -> tuple[PickFrames, Transform]:
    """Return how the views of a test video are picked and cut."""
    clips = SpacedClips(
        num_frames,
        cfg.DATA.SAMPLING_RATE,
        cfg.DATA.TARGET_FPS,
        cfg.DATA.SHORT_CLIP,
        num_clips=num_clips,
        num_crops=num_crops,
    )
    return clips, ViewCrop(cfg.DATA.TEST_CROP_SIZE, num_crops)


def build_view_counts(cfg: CfgNode) -> tuple[int, int]:
    """Return clips per video and crops per clip.

    Raises:
        ValueError: less than one clip.
    """
    num_clips, num_crops = cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS
    if num_clips < 1:
        raise ValueError(f"TEST.NUM_ENSEMBLE_VIEWS is {num_clips}, it must be at least 1")
    return num_clips, num_crops
