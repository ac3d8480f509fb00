"""What made a result."""

import torch
from torch import nn

from vmp.config import get_cfg
from vmp.engine.provenance import (
    git_commit,
    hash_config,
    hash_weights,
    shared_config,
    training_differences,
)


def dumped(*opts):
    cfg = get_cfg()
    cfg.merge_from_list(list(opts))
    return cfg.dump()


def test_the_commit_is_a_hash_or_unknown():
    commit = git_commit().removesuffix("+changes")
    assert commit == "unknown" or (len(commit) == 40 and int(commit, 16) >= 0)


def test_where_and_how_fast_does_not_change_the_hash_of_a_config():
    elsewhere = ("OUTPUT_DIR", "x", "DATA.PATH_TO_DATA_DIR", "y", "DATA_LOADER.NUM_WORKERS", 7)
    assert hash_config(dumped(*elsewhere)) == hash_config(dumped())
    assert hash_config(dumped("SOLVER.BASE_LR", 0.5)) != hash_config(dumped())


def test_ranks_share_all_of_a_config_but_what_may_differ_between_hosts():
    elsewhere = ("OUTPUT_DIR", "x", "DATA.PATH_TO_DATA_DIR", "y", "DATA_LOADER.NUM_WORKERS", 7)
    assert shared_config(dumped(*elsewhere)) == shared_config(dumped())
    # it decides no number, but when the ranks come together
    other = shared_config(dumped("LOG_PERIOD", 3))
    assert {key for key, value in shared_config(dumped()).items() if other[key] != value} == {
        "LOG_PERIOD"
    }


def test_differences_name_key_and_values():
    there, here = dumped("RNG_SEED", 1), dumped("PROMPT.ENABLE", True, "TEST.NUM_ENSEMBLE_VIEWS", 2)
    assert training_differences(there, here) == [
        "PROMPT.ENABLE (False there, True here)",
        "RNG_SEED (1 there, 0 here)",
    ]


def test_the_hash_of_weights_sees_values_names_and_types():
    first = nn.Linear(2, 2)
    same = nn.Linear(2, 2)
    same.load_state_dict(first.state_dict())
    assert hash_weights(first) == hash_weights(same)
    assert hash_weights(first) != hash_weights(nn.Sequential(first))
    assert hash_weights(first) != hash_weights(same.to(torch.bfloat16))
    with torch.no_grad():
        first.bias[0] += 1e-7
    assert hash_weights(first) != hash_weights(nn.Linear(2, 2))
