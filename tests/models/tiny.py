"""Arguments with which each backbone is small enough for a test; every registered one is here."""

TINY = {
    "slowfast": {"depth": 18, "width": 16},
    "c2d": {"width": 8},
    "i3d": {"width": 8},
    "x3d": {"width_factor": 1.0, "depth_factor": 1.0, "dim_c5": 32},
    "timesformer": {"embed_dim": 24, "depth": 2, "num_heads": 2},
}
