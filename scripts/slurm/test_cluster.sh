#!/usr/bin/env bash
# On a real SLURM of two nodes, made here for the purpose: a training that is warned, preempted with
# and without a time of grace, and loses a process ends with the weights, to the bit, of one that
# nobody disturbed.
#
#   bash scripts/slurm/test_cluster.sh     (root; Debian or Ubuntu, which it installs SLURM from)
#
# Status 0: they are equal. 77: skipped, nothing was tested. Anything else: failed; see the lines
# above and, with KEEP=1, the folder that is named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${VIRTUAL_ENV:-$PWD/.venv}/bin/python
limit=${LIMIT:-400} # seconds that any one thing is waited for

say() { printf -- '-- %3d s  %s\n' "$SECONDS" "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
skip() {
    {
        echo "**********************************************************************"
        echo "SKIPPED: $*"
        echo "NOTHING OF SLURM WAS TESTED"
        echo "**********************************************************************"
    } >&2
    exit 77
}

[ "$(id -u)" = 0 ] || skip "a test cluster takes root, to make network namespaces"
[ -x "$python" ] || die "nothing is installed in ${python%/bin/python}: bash scripts/install.sh"
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    say "installing SLURM"
    bash scripts/slurm/cluster.sh install || skip "SLURM cannot be installed, see above"
fi
unshare --net --pid --fork --mount-proc true 2>/dev/null || skip "namespaces are not allowed here"

folder=$(mktemp -d)
finish() {
    local status=$?
    trap - EXIT
    bash scripts/slurm/cluster.sh stop "$folder/slurm" || status=1
    if [ "${KEEP:-0}" = 1 ]; then say "kept $folder"; else rm -rf "$folder"; fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

on_cluster() { bash scripts/slurm/cluster.sh run "$folder/slurm" "$@"; }
submit() { on_cluster "$python" -W ignore tools/submit.py --folder "$folder/jobs" "$@"; }

# Train on two nodes, two processes each: train NAME [option ...]; prints the job.
train() {
    local name=$1
    shift
    submit --cfg configs/MotionShapes/X3D_XS_VMP.yaml --nodes 2 --gpus-per-node 0 \
        --tasks-per-node 2 --cpus-per-task 1 --time 10 "$@" \
        OUTPUT_DIR "$folder/$name" DATA.PATH_TO_DATA_DIR "$folder/data" TRAIN.BATCH_SIZE 8 \
        TRAIN.CHECKPOINT_STEPS 10 SOLVER.MAX_EPOCH 3 TEST.ENABLE False \
        LOG_PERIOD 2 TENSORBOARD False DIST_TIMEOUT 60 DATA_LOADER.NUM_WORKERS 1 |
        sed -n 's/^job \([0-9]*\):.*/\1/p'
}
state() { on_cluster squeue -h -t all -j "$1" -o %T; }
steps() { # updates that a run has recorded
    sed -n 's/.*"kind": "train", "step": \([0-9]*\).*/\1/p' "$folder/$1/log.jsonl" 2>/dev/null |
        tail -n 1 | grep . || echo 0
}
starts() { cat "$folder"/jobs/*/"$1.log" 2>/dev/null | grep -c ' start ' || true; }

preempt() {
    on_cluster sbatch --quiet --partition high --nodes 2 --exclusive --output /dev/null \
        --wrap 'sleep 1'
}
left() { grep -c 'end with status 75' "$folder"/jobs/*/"$1.log" || true; } # by themselves

# Wait until a condition holds: until_true WHAT COMMAND...
until_true() {
    local what=$1 end=$((SECONDS + limit))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "$what: not within $limit s"
        sleep 0.5
    done
}
fail() {
    submit --status >&2 || true
    tail -n 15 "$folder"/jobs/*/*.log >&2
    die "$*"
}
has_steps() { [ "$(steps "$1")" -ge "$2" ]; }
has_started() { [ "$(starts "$1")" -ge "$2" ]; }
is_over() { [[ $(state "$1") =~ COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL ]]; }
ends() { # ends JOB STATE
    until_true "job $1 ends" is_over "$1"
    [ "$(state "$1")" = "$2" ] || fail "job $1 is $(state "$1"), not $2"
}
has_resumed() { [ "$(grep -c '"origin": "resumed' "$folder/$1/log.jsonl")" -ge "$2" ]; }
went_on() { # it has taken steps beyond those of before: went_on NAME STEPS RESUMES
    has_resumed "$1" "$3" && has_steps "$1" $(($2 + 1))
}

say "a small data set"
"$python" datasets/motionshapes/prepare.py --out "$folder/data" --train 160 --test 8 --frames 16 \
    --size 48 --workers 2 >"$folder/data.log" 2>&1 || {
    tail -n 5 "$folder/data.log" >&2
    die "datasets/motionshapes/prepare.py failed, see above"
}
say "a SLURM of two nodes"
bash scripts/slurm/cluster.sh start "$folder/slurm"

say "a training that nobody disturbs"
calm=$(train calm)
ends "$calm" COMPLETED
total=$(steps calm)
say "done: $total updates"

say "the same, to be disturbed"
job=$(train disturbed --requeue)
until_true "the first updates" has_steps disturbed 12

say "1. warned, as before a time limit, at update $(steps disturbed)"
on_cluster scancel --signal USR1 "$job"
until_true "the batch script requeues it" has_started "$job" 2
until_true "it goes on" went_on disturbed 22 1

say "2. preempted by a job of a better partition, at update $(steps disturbed)"
preempt
until_true "SLURM requeues it" has_started "$job" 3
[ "$(left "$job")" = 2 ] || fail "the processes had saved, but not left, when SLURM killed them"
until_true "it goes on" went_on disturbed 32 2

say "3. one of its processes killed, at update $(steps disturbed)"
pid=$(bash scripts/slurm/cluster.sh on "$folder/slurm" 2 scontrol listpids "$job.0" |
    awk '$5 == 3 { print $1 }') || true # GLOBALID and PID
[ -n "$pid" ] || fail "there is no process of rank 3 on node 2"
on_cluster kill -KILL "$pid"
killed=$SECONDS
ends "$job" FAILED
say "it failed within $((SECONDS - killed)) s; where things stand:"
submit --status

say "4. submitted again, where preemption leaves a time of grace"
before=$(steps disturbed)
again=$(train disturbed --requeue --partition graced)
until_true "it goes on" went_on disturbed "$before" 3
say "and preempted, at update $(steps disturbed)"
preempt
until_true "the batch script requeues it, which SLURM would not" has_started "$again" 2
[ "$(left "$again")" = 1 ] || fail "the processes had not left by themselves"
ends "$again" COMPLETED
has_resumed disturbed 4 || fail "the last start did not go on where the run was"
[ "$(steps disturbed)" = "$total" ] || fail "it took $(steps disturbed) updates, not $total"

say "comparing the weights"
"$python" - "$folder/calm" "$folder/disturbed" <<'PYTHON'
import sys
from pathlib import Path

import torch


def weights(run: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Return name and weights of a run's last checkpoint."""
    path = max(Path(run, "checkpoints").glob("*.pth"), key=lambda file: file.stat().st_mtime)
    return path.name, torch.load(path, weights_only=True)["model"]


(name, calm), (other, disturbed) = map(weights, sys.argv[1:])
if name != other or calm.keys() != disturbed.keys():
    sys.exit(f"error: the runs end with {name} and {other}, or hold other weights")
differ = [key for key, value in calm.items() if not torch.equal(value, disturbed[key])]
if differ:
    sys.exit(f"error: {len(differ)} of {len(calm)} tensors of {name} differ: {differ[:5]} ...")
print(f"-- equal to the bit: {len(calm)} tensors of {name}")
PYTHON
say "passed"
