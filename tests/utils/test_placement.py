"""The place of a process, read from what each launcher sets."""

import pytest

from vmp.utils.placement import Placement, expand_hosts, find_placement

BY_HAND = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29511",
}
TORCHRUN = BY_HAND | {
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "4711.0",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "3141592@1",
}
MPIEXEC = {
    "PMI_RANK": "2",
    "PMI_SIZE": "4",
    "MPI_LOCALRANKID": "0",
    "MPI_LOCALNRANKS": "4",
    "MASTER_PORT": "15001",
}
ALL = {"torchrun": TORCHRUN, "slurm": SRUN, "openmpi": MPIRUN, "mpich": MPIEXEC}


@pytest.fixture
def pbs(tmp_path):
    """A job of PBS with two tasks on each of two hosts, without its rank variables."""
    path = tmp_path / "nodefile"
    path.write_text("cn08.cluster\ncn08.cluster\ncn03.cluster\ncn03.cluster\n")
    return {"PBS_JOBID": "1234.head", "PBS_NODEFILE": str(path)}


def test_nobody_launched_us():
    assert find_placement({"HOME": "/root"}) is None


def test_torchrun_says_it_all():
    found = find_placement(TORCHRUN)
    assert found == Placement(3, 8, 1, "node0", 29511, "4711.0", "torchrun", hosted=True)


def test_a_torchrun_that_does_not_share_its_store_leaves_it_to_rank_0():
    assert not find_placement(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "False"}).hosted


def test_the_variables_of_torchrun_may_be_set_by_hand():
    assert find_placement(BY_HAND) == Placement(3, 8, 1, "node0", 29511)


def test_srun_is_understood():
    found = find_placement(SRUN)
    assert found == Placement(5, 8, 1, "gpu07", 15000 + 4711, "slurm 4711.0.0", "slurm")


def test_ports_come_from_the_job_below_those_that_the_system_hands_out():
    ports = {
        find_placement(SRUN | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).port
        for job in range(4_000_000, 4_000_040)
        for step in range(5)
    }
    assert len(ports) == 200  # neighbours never meet
    assert min(ports) >= 15000
    assert max(ports) < 30000


def test_all_tasks_have_one_port_and_a_requeued_job_has_another():
    first = find_placement(SRUN)
    assert find_placement(SRUN | {"SLURM_PROCID": "6"}).port == first.port
    again = find_placement(SRUN | {"SLURM_RESTART_COUNT": "1"})
    assert again.port != first.port
    assert again.run != first.run


def test_master_variables_of_the_user_are_taken():
    found = find_placement(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "16000"})
    assert (found.address, found.port) == ("10.0.0.1", 16000)


def test_a_batch_script_that_is_not_a_task_is_a_single_process():
    script = {key: value for key, value in SRUN.items() if "STEP" not in key}
    assert find_placement(script) is None


def test_a_step_of_one_task_is_no_launcher():
    one = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    assert find_placement(SRUN | one) is None


def test_the_shell_of_salloc_is_no_task_of_the_job():
    # it is a step of one task, in which SLURM_NTASKS is still that of the job
    shell = SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert find_placement(shell) is None
    assert find_placement(SRUN | {"SLURM_STEP_ID": str(0xFFFFFFFA)}) is None


def test_detection_can_be_switched_off():
    for environment in ALL.values():
        assert find_placement(environment) is not None
        assert find_placement(environment | {"VMP_LAUNCHER": "none"}) is None


def test_a_launcher_can_be_chosen():
    everything = SRUN | TORCHRUN | MPIRUN
    assert find_placement(everything | {"VMP_LAUNCHER": "slurm"}).launcher == "slurm"
    assert find_placement(everything | {"VMP_LAUNCHER": "openmpi"}).launcher == "openmpi"
    assert find_placement(SRUN | {"VMP_LAUNCHER": "torchrun"}) is None
    with pytest.raises(ValueError, match="VMP_LAUNCHER is 'lsf'; it must be auto, none, or one of"):
        find_placement({"VMP_LAUNCHER": "lsf"})


def test_torchrun_inside_others_wins():
    for other in (SRUN, MPIRUN, MPIEXEC):
        assert find_placement(other | TORCHRUN)[:3] == (3, 8, 1)


def test_mpirun_inside_a_job_of_slurm_wins():
    # its helpers are started by srun, and hand their own SLURM variables on
    inside = SRUN | MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_JOB_NODELIST": "a[3-4]"}
    found = find_placement(inside)
    assert (found.rank, found.launcher, found.address) == (2, "openmpi", "a3")


def test_a_rank_set_for_all_tasks_contradicts_srun():
    with pytest.raises(ValueError, match="rank 3 of 8, slurm says rank 5 of 8; unset RANK"):
        find_placement(SRUN | BY_HAND)
    same = {"RANK": "5", "WORLD_SIZE": "8"}  # as many scripts do
    assert find_placement(SRUN | BY_HAND | same).rank == 5
    assert find_placement(SRUN | BY_HAND | {"VMP_LAUNCHER": "torchrun"}).rank == 3


def test_mpirun_on_one_host_needs_no_address():
    found = find_placement(MPIRUN)
    assert found[:4] == (2, 4, 2, "127.0.0.1")
    assert 15000 <= found.port < 30000
    assert found.port == find_placement(MPIRUN | {"OMPI_COMM_WORLD_RANK": "1"}).port
    assert found.port != find_placement(MPIRUN | {"PMIX_NAMESPACE": "3141593@1"}).port


def test_mpirun_on_several_hosts_meets_at_the_first_of_the_job(pbs):
    several = MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    assert find_placement(several | pbs).address == "cn08.cluster"
    with pytest.raises(ValueError, match="start with mpirun -x MASTER_ADDR=HOST"):
        find_placement(several)


def test_mpiexec_is_understood_in_a_job_and_outside(pbs):
    found = find_placement(MPIEXEC | pbs | {"MPI_LOCALNRANKS": "2"})
    assert found[:5] == (2, 4, 0, "cn08.cluster", 15001)
    one_host = {key: MPIEXEC[key] for key in MPIEXEC if key != "MASTER_PORT"}
    assert 15000 <= find_placement(one_host | pbs).port < 30000
    with pytest.raises(ValueError, match="no job id to derive it from; start with mpiexec -genv"):
        find_placement(one_host)


def test_srun_with_pmi_is_srun():
    found = find_placement(SRUN | {"PMI_RANK": "5", "PMI_SIZE": "8"})
    assert (found.launcher, found.local_rank) == ("slurm", 1)


def test_tasks_of_pbsdsh_are_the_lines_of_the_nodefile(pbs):
    # PBS_TASKNUM counts on, from host to host or anew, and is nobody's rank
    tasks = [("0", "2"), ("0", "3"), ("1", "1"), ("1", "2")]
    found = [
        find_placement(pbs | {"PBS_NODENUM": n, "PBS_TASKNUM": t, "PBS_VNODENUM": str(v)})
        for v, (n, t) in enumerate(tasks)
    ]
    assert [each[:3] for each in found] == [(0, 4, 0), (1, 4, 1), (2, 4, 0), (3, 4, 1)]
    assert {each.address for each in found} == {"cn08.cluster"}
    assert len({each.port for each in found}) == 1


def test_the_script_of_a_pbs_job_is_a_single_process(pbs):
    script = {"PBS_NODENUM": "0", "PBS_TASKNUM": "1", "PBS_VNODENUM": "0"}
    assert find_placement(pbs | script) is None


def test_a_nodefile_that_only_the_first_host_has_is_named(pbs):
    task = {"PBS_NODENUM": "1", "PBS_TASKNUM": "2", "PBS_VNODENUM": "2", "PBS_NODEFILE": "/no/file"}
    with pytest.raises(ValueError, match="PBS_NODEFILE /no/file can't be read on this host"):
        find_placement(pbs | task)


@pytest.mark.parametrize(
    ("launcher", "name"),
    [
        ("torchrun", "WORLD_SIZE"),
        ("torchrun", "LOCAL_RANK"),
        ("torchrun", "MASTER_ADDR"),
        ("torchrun", "MASTER_PORT"),
        ("slurm", "SLURM_LOCALID"),
        ("slurm", "SLURM_JOB_ID"),
        ("openmpi", "OMPI_COMM_WORLD_RANK"),
        ("openmpi", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("mpich", "MPI_LOCALRANKID"),
    ],
)
def test_a_missing_variable_is_named_in_one_line(launcher, name):
    environment = {key: value for key, value in ALL[launcher].items() if key != name}
    with pytest.raises(
        ValueError, match=f"^{name} is missing among .* VMP_LAUNCHER=none"
    ) as caught:
        find_placement(environment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "environment",
    [TORCHRUN | {"RANK": "x"}, SRUN | {"SLURM_PROCID": "1.5"}, MPIRUN | {"MASTER_PORT": "a"}],
    ids=["rank", "task", "port"],
)
def test_what_is_not_a_number_is_named(environment):
    with pytest.raises(ValueError, match="a whole number is needed"):
        find_placement(environment)


@pytest.mark.parametrize("wrong", [{"RANK": "8"}, {"LOCAL_RANK": "-1"}, {"MASTER_PORT": "70000"}])
def test_numbers_that_cannot_be_true_are_refused(wrong):
    with pytest.raises(ValueError, match="torchrun set rank"):
        find_placement(TORCHRUN | wrong)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", ["node1"]),
        ("node1,node2", ["node1", "node2"]),
        ("gpu[07-09,12],login1", ["gpu07", "gpu08", "gpu09", "gpu12", "login1"]),
        ("login1,gpu[1-2]", ["login1", "gpu1", "gpu2"]),
        ("gpu[3]", ["gpu3"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[008-010]", ["n008", "n009", "n010"]),
        ("gpu[1-2]-ib,login", ["gpu1-ib", "gpu2-ib", "login"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("", []),
    ],
)
def test_host_lists_of_slurm_are_expanded(text, hosts):
    assert expand_hosts(text) == hosts
