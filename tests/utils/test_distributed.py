"""The place of a process, read from what each launcher sets."""

import pytest
import torch

from vmp.utils import distributed
from vmp.utils.distributed import Placement, find_placement

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29511",
}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
}


def test_nobody_launched_us():
    assert find_placement({"HOME": "/root"}) is None


def test_torchrun_says_it_all():
    assert find_placement(TORCHRUN) == Placement(3, 8, 1, "node0", 29511)


def test_srun_is_understood_and_the_port_comes_from_the_job():
    placement = find_placement(SRUN)
    assert placement[:4] == (5, 8, 1, "gpu07")
    assert 20000 <= placement.port < 40000
    assert find_placement(SRUN | {"SLURM_JOB_ID": "4712"}).port != placement.port
    assert find_placement(SRUN | {"SLURM_PROCID": "6"}).port == placement.port


def test_a_batch_script_that_is_not_a_task_is_a_single_process():
    script = {key: value for key, value in SRUN.items() if key != "SLURM_STEP_ID"}
    assert find_placement(script) is None


def test_a_step_of_one_task_is_no_launcher():
    assert find_placement(SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None


def test_torchrun_inside_srun_wins():
    assert find_placement(SRUN | TORCHRUN).rank == 3


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-09,12]", "gpu07"),
        ("gpu[3]", "gpu3"),
        ("gpu[1-2]-ib,login", "gpu1-ib"),
        ("a1,gpu[1-2]", "a1"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert find_placement(SRUN | {"SLURM_STEP_NODELIST": nodes}).address == first


@pytest.mark.parametrize(
    "environment", [TORCHRUN | {"RANK": "x"}, SRUN | {"SLURM_PROCID": ""}], ids=["rank", "task"]
)
def test_what_is_not_a_number_is_named(environment):
    with pytest.raises(ValueError, match="a whole number is needed"):
        find_placement(environment)


def test_every_collective_works_alone():
    assert distributed.get_rank() == 0
    assert distributed.get_world_size() == 1
    assert distributed.is_main()
    distributed.barrier()
    values = torch.arange(3.0)
    assert torch.equal(distributed.average(values), values)
    assert distributed.gather_objects("a") == ["a"]
