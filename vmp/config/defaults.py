"""Every key of the configuration with its default: meaning, unit or range, and source.

Names are PySlowFast's where PySlowFast has the key. Comments are the reference documentation.
"[P]" marks what the paper states, "[C]" what the authors' released code does, "[Z]" what
PySlowFast's or TimeSformer's model zoo uses; everything without a mark is our choice.
"""

from fvcore.common.config import CfgNode

_C = CfgNode()

# ---------------------------------------------------------------- the run
# Where a run writes: config.yaml, log.jsonl, checkpoints/, tensorboard/, predictions, results. "":
# runs/<folder of the config>/<name of the config>.
_C.OUTPUT_DIR = ""
# Seed of every random choice: initialisation, sample order, clips, augmentation, dropout.
_C.RNG_SEED = 0
# GPUs of this machine to use, one process each; 0 means the CPU. Started by torchrun or srun, the
# number of processes comes from the launcher instead.
_C.NUM_GPUS = 0
# CPU processes to start (gloo) where NUM_GPUS is 0 and no launcher started us.
_C.NUM_PROCESSES = 1
# Seconds after which a collective that waits for another rank gives up.
_C.DIST_TIMEOUT = 600
# Seconds within which all ranks must have met at the start.
_C.DIST_INIT_TIMEOUT = 300
# Updates between two log lines.
_C.LOG_PERIOD = 10
# Write numbers and pictures for TensorBoard to OUTPUT_DIR/tensorboard.
_C.TENSORBOARD = True
_C.WANDB = CfgNode()
# Project of Weights & Biases (the extra "wandb") to show the run in as well; "": none. Entity, mode
# and the like come from wandb's own environment variables.
_C.WANDB.PROJECT = ""

# ---------------------------------------------------------------- data
_C.DATA = CfgNode()
# Root folder of the data set; what is expected in it is written in datasets/<name>/README.md.
_C.DATA.PATH_TO_DATA_DIR = ""
# Which of the official splits: HMDB-51 "1", "2" or "3", FineGym "gym99" or "gym288", MPII Cooking 2
# "test" or "val", UT-Interaction "crossset" or "seq". "" is the data set's own default.
_C.DATA.SPLIT = ""
# Frames the *backbone* sees. With a prompt the loader samples one more; nobody counts by hand.
_C.DATA.NUM_FRAMES = 8
# Distance of two sampled frames in source frames at TARGET_FPS.
_C.DATA.SAMPLING_RATE = 8
# Frame rate (1/s) that SAMPLING_RATE refers to: a clip spans rate * frames / TARGET_FPS seconds
# [Z]. 0: SAMPLING_RATE counts source frames, whatever the frame rate.
_C.DATA.TARGET_FPS = 30.0
# Side of the square training crop, pixels.
_C.DATA.TRAIN_CROP_SIZE = 224
# Side of the square test crop, pixels; at least TRAIN_CROP_SIZE. Larger: fully convolutional.
_C.DATA.TEST_CROP_SIZE = 256
# The short side is scaled to a length drawn from this range before cropping, pixels [Z].
_C.DATA.TRAIN_JITTER_SCALES = [256, 320]
# Flip half of the training clips left to right. Off where direction tells the class.
_C.DATA.RANDOM_FLIP = True
# Mean of the pixels in [0, 1], per channel R, G, B [Z].
_C.DATA.MEAN = [0.45, 0.45, 0.45]
# Standard deviation of the same, above 0 [Z].
_C.DATA.STD = [0.225, 0.225, 0.225]
# What a clip that reaches past the end of its video does: "hold" repeats the last frame
# (difference 0), "loop" starts again, which makes a false motion, "spread" takes its frames closer
# together, as the release does, and does the same at the end of a clip [C], "error" refuses.
_C.DATA.SHORT_CLIP = "hold"
# Decoder of VideoReader: "pyav", "decord" or "torchcodec" (an extra). Same frames, other speed.
_C.DATA.DECODING_BACKEND = "pyav"
# Seconds that opening a video, or decoding a clip, may take; then it counts as unreadable.
_C.DATA.DECODE_TIMEOUT = 120.0
# Folder that keeps the frame indexes of long videos, so that they are scanned once and not by every
# worker. "": frame_index in PATH_TO_DATA_DIR, where prepare.py puts them.
_C.DATA.FRAME_INDEX_DIR = ""
# List of records not to read, a line `id<tab>reason` each, as tools/doctor.py writes it: training
# leaves them out, a test counts them as not evaluated. "": none.
_C.DATA.QUARANTINE = ""

_C.DATA_LOADER = CfgNode()
# Worker processes per rank; 0 decodes in the training process. Does not change any number.
_C.DATA_LOADER.NUM_WORKERS = 2
# Pin the memory of a batch for the copy to a GPU.
_C.DATA_LOADER.PIN_MEMORY = True
# Batches each worker prepares ahead.
_C.DATA_LOADER.PREFETCH_FACTOR = 2

# ---------------------------------------------------------------- motion prompt
_C.PROMPT = CfgNode()
# Put a motion prompt before the backbone. The loader then samples one frame more than NUM_FRAMES.
_C.PROMPT.ENABLE = False
# Pathways that get one, slowest first: [0] slow-only, [1] fast-only, [0, 1] both (Table 1). Each
# has its own m and n; their variations are summed.
_C.PROMPT.PATHWAYS = [0]
# Weight lambda of the variation V in the loss (Eq. 7): 0, or 1e-4 to 10 [P]; 2.5 is best on
# FineGym [P]. This scale goes with REDUCTION "mean".
_C.PROMPT.PENALTY = 0.0
# V (Eq. 6): "mean" averages over pixels too, as the release does [C]; "frobenius" sums them, as
# printed [P], which is H * W times larger.
_C.PROMPT.REDUCTION = "mean"
# Grey weights: "rgb" is 0.299 R + 0.587 G + 0.114 B; "bgr" swaps red and blue, as the release
# does on RGB frames [C], for its checkpoints.
_C.PROMPT.LUMA = "rgb"
# What computes it: "auto", or "cpu", "triton" (on a GPU; needs triton and a C compiler) or "eager",
# plain operations, which "auto" takes where there is no kernel for a power normalisation.
_C.PROMPT.KERNEL = "auto"
# Learning rate of the prompt's parameters relative to BASE_LR; 0 freezes them.
_C.PROMPT.LR_MULT = 1.0
# Weight decay of the prompt's parameters. The release decays them by 1e-4 [C], which pulls a
# towards 50 and b towards 0.
_C.PROMPT.WEIGHT_DECAY = 0.0
# Power normalisation: "sigmoid" (Eq. 3), "gamma", "maxexp", "sigme" or "asinhe"; its section
# below holds its arguments. "identity" is the ablation without attention: f = 1, so the backbone
# sees the frames after the first and V is 0.
_C.PROMPT.POWER_NORM = "sigmoid"

_C.PROMPT.SIGMOID = CfgNode()
# Constants of Eq. 2 [P], each above 0: slope a(m) = alpha / (beta |tanh m| + eps), shift
# b(n) = gamma tanh n. Numerator of the slope.
_C.PROMPT.SIGMOID.ALPHA = 5.0
# Weight of |tanh m|; a is at least alpha / (beta + eps) [P].
_C.PROMPT.SIGMOID.BETA = 0.45
# Largest |b| [P].
_C.PROMPT.SIGMOID.GAMMA = 0.6
# Keeps a finite, at most alpha / eps [P].
_C.PROMPT.SIGMOID.EPS = 0.1
# Start of m. None: drawn from a normal distribution, mean 1e-5, deviation 1 [P]. A learnable m of 0
# is refused: its gradient is 0 there. With m = 1 and n = -1 the attention f(0) of a still pixel
# starts at 0.994, near the identity; a drawn n above 0 starts with still pixels blanked out.
_C.PROMPT.SIGMOID.M = None
# Start of n, likewise.
_C.PROMPT.SIGMOID.N = None
# Learn m and n; off keeps the start.
_C.PROMPT.SIGMOID.LEARNABLE = True

# It has no arguments.
_C.PROMPT.IDENTITY = CfgNode()

# The parameters are those of the authors' figures (recovered by fitting), p = max(D, 0).
_C.PROMPT.GAMMA = CfgNode()
# p ** exponent, 0 < exponent < 1.
_C.PROMPT.GAMMA.EXPONENT = 0.30
# Learn the exponent; it keeps to its range.
_C.PROMPT.GAMMA.LEARNABLE = False

_C.PROMPT.MAXEXP = CfgNode()
# 1 - (1 - p) ** eta, eta > 1.
_C.PROMPT.MAXEXP.ETA = 3.35
# Learn eta; it keeps to its range.
_C.PROMPT.MAXEXP.LEARNABLE = False

_C.PROMPT.SIGME = CfgNode()
# 2 / (1 + exp(-eta p)) - 1, eta > 1.
_C.PROMPT.SIGME.ETA = 7.95
# Learn eta; it keeps to its range.
_C.PROMPT.SIGME.LEARNABLE = False

_C.PROMPT.ASINHE = CfgNode()
# asinh(gamma p) / asinh(gamma), gamma > 0.
_C.PROMPT.ASINHE.GAMMA = 100.0
# Learn gamma; it keeps to its range.
_C.PROMPT.ASINHE.LEARNABLE = False

# ---------------------------------------------------------------- models
_C.MODEL = CfgNode()
# Backbone: "slowfast", "c2d", "i3d", "x3d" or "timesformer"; the section of that name in capitals
# holds its arguments.
_C.MODEL.NAME = "x3d"
# Classes of the head; must agree with TRAIN.DATASET where that fixes them.
_C.MODEL.NUM_CLASSES = 400
# Dropout before the last layer [Z].
_C.MODEL.DROPOUT_RATE = 0.5
# Memory layout channels_last_3d in training: on a CPU faster at 224 pixels, above all for X3D
# (docs/benchmarks.md).
_C.MODEL.CHANNELS_LAST = False
# Keep only the inputs of each residual or ViT block for the backward pass and compute the rest once
# more: less memory, more time, the same numbers.
_C.MODEL.ACT_CHECKPOINT = False
# torch.compile the model in training.
_C.MODEL.COMPILE = False

_C.SLOWFAST = CfgNode()
# Layers of the ResNet: 18, 50 or 101.
_C.SLOWFAST.DEPTH = 50
# Channels of the slow pathway's stem [Z].
_C.SLOWFAST.WIDTH = 64
# The fast pathway has this many times fewer channels; divides WIDTH [Z].
_C.SLOWFAST.BETA_INV = 8
# The slow pathway sees one frame in ALPHA; divides NUM_FRAMES. 4 for 8x8, 8 for 4x16 [Z].
_C.SLOWFAST.ALPHA = 4
# Temporal kernel of the fast-to-slow fusion: 7 for 8x8, 5 for 4x16 [Z].
_C.SLOWFAST.FUSION_KERNEL_SZ = 7
# Channels of that fusion's output over those of the fast pathway [Z].
_C.SLOWFAST.FUSION_CONV_CHANNEL_RATIO = 2
# Blocks of res4, from its first on, that see three frames; 0: all. 6 for the zoo's R101_50_50 [Z].
_C.SLOWFAST.RES4_TEMPORAL_BLOCKS = 0

_C.C2D = CfgNode()
# Layers of the ResNet: 50, 101 or 152 [Z].
_C.C2D.DEPTH = 50
# Channels of the stem [Z].
_C.C2D.WIDTH = 64
# Temporal max pool after res2, as in PySlowFast's C2D_8x8_R50. Its zoo checkpoint (C2D_NOPOOL)
# has none; weights fit both without complaint.
_C.C2D.TEMPORAL_POOL = True

_C.I3D = CfgNode()
# Layers of the ResNet: 50, 101 or 152 [Z].
_C.I3D.DEPTH = 50
# Channels of the stem [Z].
_C.I3D.WIDTH = 64

_C.X3D = CfgNode()
# Expands the channels: 2.0 for XS, S, M and L [Z].
_C.X3D.WIDTH_FACTOR = 2.0
# Expands the blocks of each stage: 2.2 for XS, S and M, 5.0 for L [Z].
_C.X3D.DEPTH_FACTOR = 2.2
# Inner over outer channels of a block [Z].
_C.X3D.BOTTLENECK_FACTOR = 2.25
# Channels of the stem before expansion [Z].
_C.X3D.DIM_C1 = 12
# Channels of the head's hidden layer [Z].
_C.X3D.DIM_C5 = 2048
# Norm after the strided shortcut of the first block, as PySlowFast has it. pytorchvideo's own
# checkpoints were trained without: set False to load those.
_C.X3D.SHORTCUT_NORM = True

_C.TIMESFORMER = CfgNode()
# "divided_space_time", "space_only" or "joint_space_time".
_C.TIMESFORMER.ATTENTION_TYPE = "divided_space_time"
# Side of a patch, pixels; divides both crop sizes.
_C.TIMESFORMER.PATCH_SIZE = 16
# Channels of a token; 768 is ViT-B [Z].
_C.TIMESFORMER.EMBED_DIM = 768
# Blocks [Z].
_C.TIMESFORMER.DEPTH = 12
# Attention heads; divides EMBED_DIM [Z].
_C.TIMESFORMER.NUM_HEADS = 12
# Channels of the hidden layer over EMBED_DIM [Z].
_C.TIMESFORMER.MLP_RATIO = 4.0
# Stochastic depth, from 0 at the first block to this at the last [Z].
_C.TIMESFORMER.DROP_PATH_RATE = 0.1

_C.BN = CfgNode()
# Batch statistics over all ranks instead of each rank's own.
_C.BN.SYNC = False
# Before each evaluation and checkpoint, recompute the running statistics over training batches [Z].
_C.BN.USE_PRECISE_STATS = False
# Batches for that [Z]; at most those of an epoch are taken.
_C.BN.NUM_BATCHES_PRECISE = 200
# Weight decay of normalisation layers' parameters and of biases [Z].
_C.BN.WEIGHT_DECAY = 0.0

# ---------------------------------------------------------------- training
_C.TRAIN = CfgNode()
# Train.
_C.TRAIN.ENABLE = True
# "hmdb51", "finegym", "mpiicooking2", "utinteraction", "motionshapes" or "csv", a list of your own.
_C.TRAIN.DATASET = "csv"
# Clips of one forward pass, over all ranks; a multiple of the number of ranks.
_C.TRAIN.BATCH_SIZE = 64
# Clips of one update (effective batch), a multiple of BATCH_SIZE: gradients of
# GLOBAL_BATCH_SIZE / BATCH_SIZE passes are averaged. 0: BATCH_SIZE.
_C.TRAIN.GLOBAL_BATCH_SIZE = 0
# Epochs between two evaluations on the test split; 0: never. The last epoch is always evaluated
# if this is not 0.
_C.TRAIN.EVAL_PERIOD = 10
# Epochs between two checkpoints. The last epoch is always written.
_C.TRAIN.CHECKPOINT_PERIOD = 1
# Updates between two checkpoints within an epoch; 0: none.
_C.TRAIN.CHECKPOINT_STEPS = 0
# Minutes between two checkpoints within an epoch, which a kill then costs at most; 0: none.
_C.TRAIN.CHECKPOINT_MINUTES = 15.0
# Newest checkpoints that are kept, the best (of the validations) besides; 0 keeps all.
_C.TRAIN.CHECKPOINT_KEEP = 3
# Go on from the newest checkpoint in OUTPUT_DIR, on a CPU to the bit. Wins over INIT_FROM.
_C.TRAIN.AUTO_RESUME = True
# Weights to start from (weights only: no epoch, no optimizer): a file of ours or of another
# project, or an http(s) URL, which is downloaded once (MODEL_ZOO.md lists what there is). "": from
# scratch.
_C.TRAIN.INIT_FROM = ""
# SHA-256 of that file, or how it begins (8 to 64 hexadecimal digits); another file is refused. "":
# any.
_C.TRAIN.INIT_SHA256 = ""
# Refuse it if anything but the head and the prompt is missing, of another shape, or too many.
_C.TRAIN.INIT_STRICT = True
# How embeddings of a TimeSformer for another clip are resized: "interpolate" (positions bicubic as
# a grid, times linear) or "original" (nearest, positions as one flat sequence, which mixes up rows
# and columns) [Z].
_C.TRAIN.INIT_RESIZE = "interpolate"
# What is trained: "all", or any of "prompt" (the motion prompts), "head" (the layer that gives the
# logits) and "last_blocks". The rest is frozen: no gradient, no weight decay, norms keep their
# running statistics, no dropout or drop path. [P]: "the entire model or specific layers".
_C.TRAIN.PARTS = ["all"]
# Blocks of "last_blocks", counted from the end; what comes after them, head included, is trained
# too. A block is one of the 4 stages of a convolutional network, or a ViT block of TimeSformer.
_C.TRAIN.LAST_BLOCKS = 1
# "float32", "bfloat16" or "float16" (with loss scaling).
_C.TRAIN.PRECISION = "float32"
# Mix two clips of a rank's batch and their labels by mixup: parameter of the Beta distribution that
# the share is drawn from, 0 is off. With cutmix on too, one of the two is drawn per batch.
_C.TRAIN.MIXUP_ALPHA = 0.0
# The same for cutmix.
_C.TRAIN.CUTMIX_ALPHA = 0.0

_C.TEST = CfgNode()
# Test, after the training if there is one.
_C.TEST.ENABLE = True
# Clips of one forward pass of a rank; not divided among the ranks, so that the results do not
# depend, not even in their last bits, on how many there are.
_C.TEST.BATCH_SIZE = 8
# Threads of a rank on the CPU in a test; with equal numbers results are equal to the bit. More
# processes (NUM_PROCESSES) use more cores.
_C.TEST.CPU_THREADS = 1
# Clips per video, evenly spaced in time: 10, TimeSformer 1 [Z][C].
_C.TEST.NUM_ENSEMBLE_VIEWS = 10
# Crops per clip: 1 (centre) or 3 (left, centre, right, or top to bottom) [Z][C].
_C.TEST.NUM_SPATIAL_CROPS = 3
# What is averaged over the views: "softmax" [Z], or "logits", as TimeSformer does [Z].
_C.TEST.ENSEMBLE = "softmax"
# Checkpoint to test; "" is the newest in OUTPUT_DIR.
_C.TEST.CHECKPOINT_FILE_PATH = ""

# ---------------------------------------------------------------- optimisation
_C.SOLVER = CfgNode()
# "sgd" or "adamw".
_C.SOLVER.OPTIMIZING_METHOD = "sgd"
# Learning rate of an update of GLOBAL_BATCH_SIZE clips; nothing rescales it. [P]: "e.g. 0.005".
_C.SOLVER.BASE_LR = 0.005
# "cosine" or "steps_with_relative_lrs".
_C.SOLVER.LR_POLICY = "cosine"
# Learning rate at the end of the cosine.
_C.SOLVER.COSINE_END_LR = 0.0
# Epochs at which a step begins, the first 0 [C].
_C.SOLVER.STEPS = [0, 11, 14]
# What BASE_LR is multiplied with from each of STEPS on [C].
_C.SOLVER.LRS = [1.0, 0.1, 0.01]
# Epochs; the schedule ends with the last.
_C.SOLVER.MAX_EPOCH = 30
# Epochs of linear warm-up to the schedule, may be a fraction [Z].
_C.SOLVER.WARMUP_EPOCHS = 0.0
# Learning rate at the start of the warm-up.
_C.SOLVER.WARMUP_START_LR = 0.0
# Momentum of SGD, 0 to 1 [P].
_C.SOLVER.MOMENTUM = 0.9
# Nesterov momentum of SGD [Z][C].
_C.SOLVER.NESTEROV = True
# Weight decay; norms and biases have BN.WEIGHT_DECAY, prompts PROMPT.WEIGHT_DECAY. [P]: 1e-4.
_C.SOLVER.WEIGHT_DECAY = 1e-4
# Betas of AdamW.
_C.SOLVER.BETAS = [0.9, 0.999]
# Largest L2 norm of the gradient; 0: no clipping.
_C.SOLVER.CLIP_GRAD_L2NORM = 0.0
# Validate, test and keep as the model an exponential moving average of the weights, updated with
# this decay after each update; 0: none.
_C.SOLVER.EMA_DECAY = 0.0
# Share of the target spread over all classes.
_C.SOLVER.LABEL_SMOOTHING = 0.0


def get_cfg() -> CfgNode:
    """Return a fresh, mutable copy of the defaults."""
    return _C.clone()
