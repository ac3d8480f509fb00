"""Submitting to a SLURM that is made up: sbatch, squeue and the like are scripts on PATH."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, load_module
from vmp.config import load_cfg

TOOL = ROOT / "tools" / "submit.py"
TEMPLATE = ROOT / "scripts" / "slurm" / "train.sbatch"
CONFIG = "_BASE_: {base}\nDATA_LOADER: {{NUM_WORKERS: {workers}}}\n"
JOB = ["--gpus-per-node", "2", "--time", "2:00:00"]

# sbatch: fails with $SBATCH_FAILS, else notes its arguments and answers with the next number
FAKES = {
    "sbatch": '[ -z "$SBATCH_FAILS" ] || { echo "$SBATCH_FAILS" >&2; exit 1; }\n'
    'echo "$@" >>"$CALLS"; echo "$((40 + $(wc -l <"$CALLS")));cluster"',
    "squeue": 'cat "$QUEUE"',
    "sinfo": "echo main; echo high; echo main",
    "scontrol": 'echo "$@" >>"$CALLS"',
    "srun": 'printf "%s\\n" "$@" >>"$CALLS.srun"; sleep "${SRUN_TAKES:-0}"; exit "${SRUN_ENDS:-0}"',
}


@pytest.fixture(scope="module")
def tool():
    yield from load_module("submit", TOOL)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder to submit from, with the configs a.yaml and b.yaml, and a SLURM on PATH."""
    for name, text in FAKES.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    for name in ("CALLS", "QUEUE"):
        (tmp_path / name.lower()).touch()
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("SBATCH_FAILS", "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    base = ROOT / "configs" / "MotionShapes" / "X3D_XS.yaml"
    folder = tmp_path / "its checkout"
    folder.mkdir()
    for workers, name in enumerate("ab", start=3):
        text = CONFIG.format(base=base, workers=workers)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def submit(tool, cluster, capsys):
    """Return a function that submits with the given arguments and returns what is printed."""

    def run(*words):
        tool.submit(tool.parse_args(words))
        return capsys.readouterr().out

    return run


@pytest.fixture
def status(tool, cluster, capsys):
    """Return a function that returns the lines of the table, without its head."""

    def run(*what):
        tool.status(tool.parse_args(["--status", *what]))
        return capsys.readouterr().out.splitlines()[1:]

    return run


def calls(cluster):
    return (cluster.parent / "calls").read_text(encoding="utf-8").splitlines()


def queue(cluster, *lines):
    text = "".join(f"{line}\n" for line in lines)
    (cluster.parent / "queue").write_text(text, encoding="utf-8")


def options(script):
    """Return the #SBATCH options of a script, as sbatch reads them."""
    lines = [line[8:] for line in script.splitlines() if line.startswith("#SBATCH ")]
    return dict((line.removeprefix("--") + "=").split("=")[:2] for line in lines)


def logs_of(cluster):
    (folder,) = (cluster / "runs" / "slurm").iterdir()
    return folder


def refused(cluster, submit, *words, match):
    """Assert that a submission ends with one line, and that nothing was written or submitted."""
    with pytest.raises(ValueError, match=match) as caught:
        submit(*words)
    assert "\n" not in str(caught.value)
    assert calls(cluster) == []
    assert not list(cluster.glob("runs/slurm/*"))


# ---------------------------------------------------------------- the script


def test_a_dry_run_prints_a_whole_script_and_leaves_nothing(cluster, submit):
    words = ["--nodes", "2", "--partition", "main", "--account", "lab", "--qos", "long"]
    words += ["--constraint", "a100&ib", "--mem", "100G", "--setup", "module load cuda"]
    words += ["--requeue", "--sbatch=--exclusive", "--signal", "USR2@300"]
    script = submit("--cfg", "a.yaml", *JOB, *words, "--dry-run", "SOLVER.MAX_EPOCH", "7")
    subprocess.run(["bash", "-n"], input=script, check=True, encoding="utf-8")
    found = options(script)
    assert found.pop("output").endswith("_a/%j.log'")  # quoted: there is a space in the path
    assert found.pop("chdir") == f"'{cluster}'"
    assert found == {
        **{"job-name": "a", "nodes": "2", "ntasks-per-node": "2", "gpus-per-node": "2"},
        **{"cpus-per-task": "4", "mem": "100G", "time": "2:00:00", "partition": "main"},
        **{"account": "lab", "qos": "long", "constraint": "'a100&ib'", "signal": "USR2@300"},
        **{"open-mode": "append", "requeue": "", "exclusive": ""},
    }
    assert "\nmodule load cuda\n" in script
    assert "# 0: a.yaml SOLVER.MAX_EPOCH 7\n" in script
    assert calls(cluster) == []
    assert sorted(path.name for path in cluster.iterdir()) == ["a.yaml", "b.yaml"]


def test_a_dry_run_needs_no_cluster(cluster, submit, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit("--cfg", "a.yaml", *JOB, "--dry-run").startswith("#!/bin/bash\n#SBATCH ")


def test_the_job_does_what_the_script_for_ones_own_changes_does(cluster, submit):
    mark = "what the job does\n"
    body = TEMPLATE.read_text(encoding="utf-8").partition(mark)[2]
    assert len(body) > 1000
    assert submit("--cfg", "a.yaml", *JOB, "--dry-run").endswith(body)


def test_a_job_without_requeue_is_not_requeued_by_slurm_either(cluster, submit):
    script = submit("--cfg", "a.yaml", *JOB, "--dry-run")
    assert "no-requeue" in options(script)
    assert "\nrequeue=no\n" in script


def test_processes_on_the_cpu_ask_for_no_gpus(cluster, submit):
    words = ["--gpus-per-node", "0", "--tasks-per-node", "4", "--time", "60", "--signal", ""]
    found = options(submit("--cfg", "a.yaml", *words, "--dry-run"))
    assert found["ntasks-per-node"] == "4"
    assert not {"gpus-per-node", "signal"} & set(found)


def test_several_configs_are_one_array_and_each_task_runs_its_own(cluster, submit):
    printed = submit("--cfg", "a.yaml", "--cfg", "b.yaml", *JOB)
    assert "job 41_0: a.yaml" in printed
    assert "job 41_1: b.yaml" in printed
    (call,) = calls(cluster)
    logs = logs_of(cluster)
    assert call == f"--parsable {logs / 'job.sh'}"
    found = options((logs / "job.sh").read_text(encoding="utf-8"))
    assert (found["array"], found["cpus-per-task"]) == ("0-1", "5")
    assert found["output"] == f"'{logs}/%A_%a.log'"
    for index, name in ((0, "0_a.yaml"), (1, "1_b.yaml")):
        words = run_job(logs / "job.sh", SLURM_ARRAY_JOB_ID="41", SLURM_ARRAY_TASK_ID=str(index))[1]
        assert words[-5:] == [
            *(sys.executable, "-u", str(ROOT / "tools" / "run_net.py")),
            *("--cfg", str(logs / name)),
        ]
        assert f"--output={logs}/41_{index}.task%t.log" in words


def test_a_job_reads_the_config_as_it_was_when_submitted(cluster, submit):
    submit("--cfg", "a.yaml", *JOB, "SOLVER.MAX_EPOCH", "7")
    (cluster / "a.yaml").write_text("SOLVER: {MAX_EPOCH: 1}\n", encoding="utf-8")
    cfg = load_cfg(logs_of(cluster) / "0_a.yaml")
    assert (cfg.SOLVER.MAX_EPOCH, cfg.NUM_GPUS, cfg.DATA_LOADER.NUM_WORKERS) == (7, 2, 3)
    assert Path(cfg.OUTPUT_DIR) == Path("runs", cluster.name, "a")


# ---------------------------------------------------------------- what the script does


def run_job(script, *words, during=None, **env):
    """Run a batch script as SLURM would; return its status, and the words that srun was given."""
    job = {"SLURM_JOB_ID": "40", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "3"}
    words_of_srun = Path(os.environ["CALLS"] + ".srun")
    words_of_srun.unlink(missing_ok=True)
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    process = subprocess.Popen(["bash", str(script), *words], env=inherited | job | env)
    if during:
        during(process)
    status = process.wait(timeout=60)
    return status, words_of_srun.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("ends", "queued", "requeued"),
    [
        ("75", "RUNNING None", True),  # warned of the time limit, or preempted with grace
        ("75", "COMPLETING TimeLimit", True),
        ("75", "COMPLETING None", False),  # scancel, or preempted without grace
        ("75", "PENDING BeginTime", False),  # SLURM has requeued it by itself
        ("75", "", False),
        ("0", "RUNNING None", False),
        ("1", "RUNNING None", False),
        ("137", "RUNNING None", False),
    ],
)
def test_a_stopped_job_is_requeued_unless_slurm_or_a_user_has_ended_it(
    cluster, ends, queued, requeued
):
    queue(cluster, queued)
    status, words = run_job(TEMPLATE, "--cfg", "a b.yaml", SRUN_ENDS=ends)
    assert status == int(ends)
    assert words[-2:] == ["--cfg", "a b.yaml"]
    assert calls(cluster) == (["requeue 40"] if requeued else [])


def test_a_task_of_an_array_requeues_itself_alone(cluster):
    # the last task's own job id is that of the whole array
    queue(cluster, "RUNNING None")
    job = {"SLURM_JOB_ID": "40", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "7"}
    assert run_job(TEMPLATE, SRUN_ENDS="75", **job)[0] == 75
    assert calls(cluster) == ["requeue 40_7"]


def test_a_job_that_was_submitted_without_requeue_keeps_its_status(cluster, submit):
    submit("--cfg", "a.yaml", *JOB)
    queue(cluster, "RUNNING None")
    assert run_job(logs_of(cluster) / "job.sh", SRUN_ENDS="75")[0] == 75
    assert len(calls(cluster)) == 1  # of sbatch


def test_the_batch_script_outlives_the_signal_that_its_tasks_get(cluster):
    def terminate(process):
        srun = Path(os.environ["CALLS"] + ".srun")
        limit = time.monotonic() + 30
        while not srun.exists() and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)

    queue(cluster, "RUNNING None")
    assert run_job(TEMPLATE, during=terminate, SRUN_TAKES="1", SRUN_ENDS="75")[0] == 75
    assert calls(cluster) == ["requeue 40"]


def test_srun_and_torch_get_the_cpus_of_the_task(cluster):
    probe = cluster.parent / "bin" / "srun"
    probe.write_text('#!/bin/bash\necho "$SRUN_CPUS_PER_TASK $OMP_NUM_THREADS" >"$CALLS.srun"\n')
    assert run_job(TEMPLATE)[1] == ["3 3"]
    assert run_job(TEMPLATE, OMP_NUM_THREADS="1")[1] == ["3 1"]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "no --cfg"),
        (["--cfg", "a.yaml"], "--gpus-per-node .* and --time"),
        (["--cfg", "a.yaml", *JOB, "--nodes", "0"], "--nodes is 0"),
        (["--cfg", "a.yaml", *JOB, "--name", "a/b"], "--name is 'a/b'.*without /"),
        (["--cfg", "a.yaml", *JOB, "--tasks-per-node", "3"], "--tasks-per-node is 3.*2 GPUs"),
        (["--cfg", "a.yaml", *JOB, "NUM_GPUS", "2"], "--gpus-per-node; leave it out"),
        (["--cfg", "a.yaml", *JOB, "TENSORBOARD", "False", "--requeue"], "--requeue comes after"),
        (["--cfg", "gone.yaml", *JOB], "no file gone.yaml"),
        (["--cfg", "a.yaml", "--cfg", "gone.yaml", *JOB], "no file gone.yaml"),
        (["--cfg", "a.yaml", *JOB, "SOLVER.BASE_LRR", "1"], "did you mean SOLVER.BASE_LR"),
        (["--cfg", "a.yaml", *JOB, "--nodes", "3"], "TRAIN.BATCH_SIZE is 8.*among 6 processes"),
        (["--cfg", "a.yaml", *JOB, "--partition", "main,slow"], "slow is unknown.* high, main$"),
        (["--cfg", "a.yaml", *JOB, "--signal", "@5"], "--signal is '@5'"),
        (["--cfg", "a.yaml", *JOB, "--signal", "HUP@120"], "stops at .*VMP_STOP_SIGNALS"),
        (["--cfg", "a.yaml", "--gpus-per-node", "2", "--time", "3"], "give 4 minutes or more"),
        (["--cfg", "a.yaml", "--gpus-per-node", "2", "--time", "soon"], "--time is 'soon'"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_before_anything_is_submitted(
    cluster, submit, words, match
):
    refused(cluster, submit, *words, match=match)


def test_a_warning_by_another_signal_is_taken_when_the_training_is_told_of_it(
    cluster, submit, monkeypatch
):
    monkeypatch.setenv("VMP_STOP_SIGNALS", "SIGTERM,SIGHUP")
    script = submit("--cfg", "a.yaml", *JOB, "--signal", "HUP@120", "--dry-run")
    assert options(script)["signal"] == "HUP@120"


def test_two_configs_that_write_into_one_folder_are_refused(cluster, submit):
    words = ["--cfg", "a.yaml", "--cfg", "b.yaml", *JOB, "OUTPUT_DIR", "runs/one"]
    refused(cluster, submit, *words, match="OUTPUT_DIR is runs/one for both a.yaml and b.yaml")


def test_without_slurm_the_other_ways_are_named(cluster, submit, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    refused(cluster, submit, "--cfg", "a.yaml", *JOB, match="no squeue here.*docs/clusters.md")


def test_what_sbatch_refuses_is_told_in_one_line_and_leaves_nothing(cluster, submit, monkeypatch):
    reason = "sbatch: error: invalid account\nsbatch: error: Batch job submission failed"
    monkeypatch.setenv("SBATCH_FAILS", reason)
    refused(
        cluster,
        submit,
        "--cfg",
        "a.yaml",
        *JOB,
        match="sbatch failed, so nothing is done: .*invalid account",
    )


def test_a_folder_that_a_queued_job_will_write_is_refused_until_that_is_over(cluster, submit):
    submit("--cfg", "a.yaml", "--name", "first", *JOB, "OUTPUT_DIR", "runs/one")
    again = ["--cfg", "b.yaml", "--name", "second", *JOB, "OUTPUT_DIR", "runs/one"]
    for state in ("PENDING", "RUNNING", "COMPLETING"):
        queue(cluster, f"41|{state}|None|0:10")
        with pytest.raises(ValueError, match=f"belongs to job 41, which is {state}; `scancel 41`"):
            submit(*again)
    queue(cluster, "41|CANCELLED|None|0:10")
    assert "job 42: b.yaml" in submit(*again)


def test_the_checks_leave_the_environment_as_it_was(cluster, submit):
    before = dict(os.environ)
    submit("--cfg", "a.yaml", *JOB, "--dry-run")
    with pytest.raises(ValueError, match="among 6"):
        submit("--cfg", "a.yaml", *JOB, "--nodes", "3")
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:01", 7201),
        ("1-2", 93600),
        ("1-2:30", 95400),
        ("1-2:30:05", 95405),
        ("UNLIMITED", float("inf")),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(tool, limit, seconds):
    assert tool.seconds_of(limit) == seconds


# ---------------------------------------------------------------- where things stand


@pytest.fixture
def submitted(cluster, submit):
    """Return the folder of logs after the array 41 of a.yaml and b.yaml was submitted."""
    submit("--cfg", "a.yaml", "--cfg", "b.yaml", *JOB)
    return logs_of(cluster)


def write_log(folder, job, ends, extra=""):
    """Write a batch log of as many starts as `ends`, each with its status, None while it runs."""
    lines = []
    for count, end in enumerate(ends):
        lines += [f"-- 2030-01-01T00:00:00 start {count} of job {job} on node[1-2]\n", extra]
        lines += [] if end is None else [f"-- 2030-01-01T00:10:00 end with status {end}\n"]
    (folder / f"{job}.log").write_text("".join(lines), encoding="utf-8")


def write_aged(path, text, seconds):
    path.write_text(text, encoding="utf-8")
    then = time.time() - seconds
    os.utime(path, (then, then))


def cells(row):
    return re.split(" {2,}", row)


def test_the_table_shows_state_starts_checkpoint_and_last_line(cluster, submitted, status):
    queue(cluster, "41_0|RUNNING|None|1:02:03", "41_1|PENDING|Resources|0:00", "7|RUNNING|None|1")
    write_log(submitted, "41_0", ["75", None])
    (submitted / "41_0.task0.log").write_text("started\nepoch 1.5 loss 2.1\n\n", encoding="utf-8")
    (submitted / "41_0.task1.log").write_text("of no interest\n", encoding="utf-8")
    checkpoints = cluster / "runs" / cluster.name / "a" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for number, age in ((1, 600), (2, 300)):
        write_aged(checkpoints / f"step_{number}.pth", "", age)
    run = f"runs/{cluster.name}"
    first, second, counts = status()
    checkpoint = "step_2.pth (5 min ago)"
    assert cells(first) == [
        *("41_0", f"{run}/a", "RUNNING 1:02:03", "2", checkpoint, "epoch 1.5 loss 2.1"),
    ]
    assert cells(second) == ["41_1", f"{run}/b", "PENDING (Resources)", "0", "-"]
    assert counts == "1 RUNNING, 1 PENDING"


@pytest.mark.parametrize(
    ("queued", "ends", "state"),
    [
        ("COMPLETED|None|9:00", ["0"], "COMPLETED 9:00"),
        ("FAILED|NonZeroExitCode|9:00", ["75", "1"], "FAILED (status 1)"),
        ("FAILED|NonZeroExitCode|9:00", ["75"], "STOPPED (75: submit it again)"),
        ("TIMEOUT|TimeLimit|9:00", ["75"], "STOPPED (75: submit it again)"),
        ("TIMEOUT|TimeLimit|9:00", [None], "TIMEOUT 9:00"),
        ("CANCELLED|None|9:00", ["75"], "CANCELLED 9:00"),
        ("NODE_FAIL|None|9:00", [None], "NODE_FAIL 9:00"),
        ("PENDING|BeginTime|0:00", ["75"], "PENDING (BeginTime)"),
        (
            "PENDING|Nodes required for job are DOWN, DRAINED|0",
            [],
            "PENDING (Nodes required for job are ...)",
        ),
        # SLURM has forgotten these: the log alone tells
        (None, ["75", "0"], "COMPLETED"),
        (None, ["75", "2"], "FAILED (status 2)"),
        (None, ["75"], "STOPPED (75: submit it again)"),
        (None, ["75", None], "LOST (it did not end by itself)"),
        (None, [], "LOST (it did not end by itself)"),
    ],
)
def test_a_state_is_slurms_or_after_it_has_forgotten_the_logs(
    cluster, submitted, status, queued, ends, state
):
    queue(cluster, *([] if queued is None else [f"41_0|{queued}"]))
    write_log(submitted, "41_0", ends)
    assert cells(status("41_0")[0])[2] == state


def test_of_a_failed_run_the_first_error_is_shown(cluster, submitted, status):
    queue(cluster, "41_0|FAILED|NonZeroExitCode|9:00")
    write_log(
        submitted, "41_0", ["1"], extra="srun: error: node2: task 2: Exited with exit code 1\n"
    )
    last_lines = ["epoch 1", "error: a peer is gone", "error: no such video", "ValueError: later"]
    for rank, (line, age) in enumerate(zip(last_lines, (9, 5, 7, 3), strict=True)):
        text = f"error: of another start\n{line}\nslurmstepd-node1: error: *** CANCELLED\n\n"
        write_aged(submitted / f"41_0.task{rank}.log", text, age)
    assert status("41_0")[0].endswith("  error: no such video")


def test_of_a_run_whose_processes_could_say_nothing_slurms_reason_is_shown(
    cluster, submitted, status
):
    queue(cluster, "41_0|FAILED|NonZeroExitCode|9:00")
    killed = "srun: error: node2: task 1: Killed\nsrun: error: node1: task 0: Terminated\n"
    write_log(submitted, "41_0", ["75", "137"], extra=killed)
    (submitted / "41_0.task0.log").write_text("epoch 1\n", encoding="utf-8")
    assert status("41_0")[0].endswith("  srun: error: node2: task 1: Killed")


def test_runs_are_found_by_job_by_array_and_by_folder(cluster, submitted, submit, status):
    submit("--cfg", "a.yaml", "--name", "again", *JOB)
    run = f"runs/{cluster.name}"

    def jobs(*what):
        return [cells(row)[0] for row in status(*what)[:-1]]

    assert jobs("41") == ["41_0", "41_1"]
    assert jobs("41_1", "42") == ["41_1", "42"]
    assert jobs(f"{run}/b") == ["41_1"]
    assert jobs(f"./{run}/a/") == ["42"]  # the last one that wrote there
    assert sorted(jobs()) == ["41_1", "42"]


def test_what_was_not_submitted_from_here_is_named(cluster, submitted, status):
    with pytest.raises(ValueError, match=r"^43 is neither a job nor .* `squeue --me`"):
        status("41", "43")


def test_without_any_submission_the_status_says_where_it_looked(cluster, status):
    with pytest.raises(ValueError, match="nothing was submitted with --folder runs/slurm"):
        status()


# ---------------------------------------------------------------- on PBS


@pytest.mark.parametrize("ends", [0, 1, 75])
def test_the_pbs_script_starts_a_process_a_slot_and_goes_on_as_a_new_job(cluster, ends):
    script = (ROOT / "scripts" / "pbs" / "train.pbs").read_text(encoding="utf-8")
    for name, text in (
        ("mpirun", f'printf "%s\\n" "$@" >"$CALLS.mpirun"; exit {ends}'),
        ("qsub", 'echo "$@" >>"$CALLS"'),
    ):
        path = cluster.parent / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    (cluster / "hosts").write_text("node1\nnode1\nnode2\nnode2\n", encoding="utf-8")
    pbs = {"PBS_O_WORKDIR": str(cluster), "PBS_NODEFILE": str(cluster / "hosts")}
    done = subprocess.run(["bash", "-s"], input=script, encoding="utf-8", env=os.environ | pbs)
    words = (cluster.parent / "calls.mpirun").read_text(encoding="utf-8").splitlines()
    assert done.returncode == ends
    assert words[:4] == ["-n", "4", "--hostfile", str(cluster / "hosts")]
    assert words[words.index("-u") + 1 :][:2] == ["tools/run_net.py", "--cfg"]
    assert calls(cluster) == (["train.pbs"] if ends == 75 else [])


def test_the_pbs_script_warns_its_processes_before_the_time_limit(cluster):
    text = (ROOT / "scripts" / "pbs" / "train.pbs").read_text(encoding="utf-8")
    text = text.replace("walltime=$((24 * 3600))", "walltime=301")
    mpirun = cluster.parent / "bin" / "mpirun"
    mpirun.write_text("#!/bin/bash\ntrap 'exit 75' USR1\nsleep 30 & wait\n", encoding="utf-8")
    mpirun.chmod(0o755)
    (cluster.parent / "bin" / "qsub").write_text('#!/bin/bash\necho "$@" >>"$CALLS"\n')
    (cluster.parent / "bin" / "qsub").chmod(0o755)
    pbs = {"PBS_O_WORKDIR": str(cluster), "PBS_NODEFILE": os.devnull}
    done = subprocess.run(
        ["bash", "-s"], input=text, encoding="utf-8", env=os.environ | pbs, timeout=25
    )
    assert done.returncode == 75
    assert calls(cluster) == ["train.pbs"]
