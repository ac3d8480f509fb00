"""The collectives without a process group; tests/engine/test_launch.py has them with one."""

import torch

from vmp.utils import distributed


def test_every_collective_works_alone():
    assert distributed.get_rank() == 0
    assert distributed.get_world_size() == 1
    assert distributed.is_main()
    distributed.barrier()
    values = torch.arange(3.0)
    assert torch.equal(distributed.average(values), values)
    assert distributed.gather_objects("a") == ["a"]
