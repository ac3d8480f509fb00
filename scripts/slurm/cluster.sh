#!/usr/bin/env bash
# A real SLURM of two nodes on this one machine, to test with: controller and nodes are processes of
# their own network namespaces behind a bridge, so nothing listens outside and no daemon of this
# machine is touched. All of it hangs below one process, which takes everything with it at the end.
#
#   cluster.sh install             SLURM and munge from the distribution (root, apt)
#   cluster.sh start FOLDER        keys, configuration, state and logs lie in FOLDER
#   cluster.sh run FOLDER CMD...   run a command on its login node
#   cluster.sh on FOLDER N CMD...  run a command on node N, 1 or 2, outside of any job
#   cluster.sh stop FOLDER         end what `start` has started
#
# Partitions: main (preempted by high, no grace), graced (the same, 20 s of grace), high.
set -euo pipefail

nodes=(1 2)
net=10.79.0

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

install() {
    [ "$(id -u)" = 0 ] || die "installing takes root"
    command -v apt-get >/dev/null || die "there is no apt-get here"
    apt-get -q update >/dev/null || die "apt-get update failed: is there a network?"
    # without recommends, which would bring a database and a mail server
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
        slurmctld slurmd slurm-client munge iproute2 >/dev/null || die "apt-get install failed"
}

write_files() {
    mkdir -p "$folder"/{run,log,state,spool.node1,spool.node2,dev}
    chmod 755 "$folder" "$folder/run"
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    # names from here only: a name server that cannot be reached costs torch 10 s a connection
    printf 'hosts: files\npasswd: files\ngroup: files\n' >"$folder/nsswitch.conf"
    {
        printf '127.0.0.1 localhost\n%s.100 head\n' "$net"
        for n in "${nodes[@]}"; do printf '%s.%s node%s\n' "$net" "$n" "$n"; done
    } >"$folder/hosts"
    # SLURM takes any character device for a GPU: these are /dev/null by another name
    for n in 0 1; do mknod "$folder/dev/gpu$n" c 1 3; done
    echo "NodeName=node[1-2] Name=gpu File=$folder/dev/gpu[0-1]" >"$folder/gres.conf"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=vmptest
SlurmctldHost=head($net.100)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a requeued job waits as long as its credential lives; 5 s is the least that is accepted
AuthInfo=socket=$folder/run/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# the nodes pretend to have more processors than this machine
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
MinJobAge=${MIN_JOB_AGE:-3600}
SlurmctldTimeout=20
SlurmdTimeout=20
DefMemPerCPU=500
GresTypes=gpu
NodeName=node1 NodeAddr=$net.1 CPUs=8 RealMemory=8000 Gres=gpu:2 Feature=fast State=UNKNOWN
NodeName=node2 NodeAddr=$net.2 CPUs=8 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=DEFAULT Nodes=node[1-2] MaxTime=60 DefaultTime=5 State=UP
PartitionName=main Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=graced PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high PriorityTier=100 PreemptMode=OFF
CONF
}

# The first process of the namespaces. Everything is its child, in the foreground.
boot() {
    local pids=() n pid
    hostname head
    mount --bind "$folder/hosts" /etc/hosts
    mount --bind "$folder/nsswitch.conf" /etc/nsswitch.conf
    ip link set lo up
    ip link add bridge type bridge
    ip addr add "$net.100/24" dev bridge
    ip link set bridge up
    export SLURM_CONF=$folder/slurm.conf
    munged --foreground --force --socket="$folder/run/munge.socket" \
        --key-file="$folder/munge.key" --pid-file="$folder/run/munged.pid" \
        --seed-file="$folder/run/munge.seed" --log-file="$folder/log/munged.log" &
    pids+=($!)
    until [ -S "$folder/run/munge.socket" ]; do sleep 0.05; done
    slurmctld -D -i &
    pids+=($!)
    for n in "${nodes[@]}"; do
        # waits for its cable, then becomes slurmd: the process holds the node's namespaces
        unshare --net --uts bash -c "
            until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
            hostname node$n
            ip link set lo up
            ip addr add $net.$n/24 dev eth0
            ip link set eth0 up
            exec slurmd -D -N node$n" &
        pid=$!
        pids+=("$pid")
        echo "$pid" >"$folder/run/node$n.inner"
        until [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do
            sleep 0.02
        done
        ip link add "cable$n" type veth peer name eth0 netns "$pid"
        ip link set "cable$n" master bridge up
    done
    # shellcheck disable=SC2064  # the ids of now
    trap "kill ${pids[*]} 2>/dev/null; exit" TERM
    while :; do wait || true; sleep 0.2; done # and reap what jobs leave behind
}

inside() {
    exec nsenter --target "$(cat "$folder/run/init")" --net --pid --mount --uts --ipc \
        --wd="$PWD" env SLURM_CONF="$folder/slurm.conf" "$@"
}

start() {
    local outer i
    [ "$(id -u)" = 0 ] || die "a test cluster takes root, to make network namespaces"
    command -v slurmctld >/dev/null && command -v munged >/dev/null ||
        die "there is no SLURM here: $0 install"
    [ ! -e "$folder/slurm.conf" ] || die "$folder holds a cluster; stop it and delete the folder"
    write_files
    setsid unshare --net --pid --fork --mount-proc --uts --ipc --kill-child \
        bash "$self" boot "$folder" </dev/null >"$folder/log/boot.log" 2>&1 &
    outer=$!
    for i in $(seq 100); do
        pgrep -P "$outer" >"$folder/run/init" && break
        sleep 0.05
    done
    for i in $(seq 200); do
        [ "$("$self" run "$folder" sinfo -h -p main -t idle -o %D 2>/dev/null)" = 2 ] && return
        sleep 0.1
    done
    "$self" stop "$folder" || true
    tail -n 5 "$folder"/log/*.log >&2
    die "the cluster did not come up; see above and $folder/log"
}

# The first process ends the daemons and then itself; all that is left in its namespace, jobs too,
# ends with it, and so do the mounts and the network.
stop() {
    local init signal i
    init=$(cat "$folder/run/init") || die "$folder holds no cluster"
    for signal in TERM KILL; do
        kill -"$signal" "$init" 2>/dev/null || true
        for i in $(seq 50); do
            [ -d "/proc/$init" ] || return 0
            sleep 0.1
        done
    done
    die "process $init, the cluster in $folder, does not end"
}

self=$(readlink -f "${BASH_SOURCE[0]}")
action=${1:-}
[ "$action" = install ] || [ $# -ge 2 ] || die "usage: $0 install | start | run | on | stop FOLDER"
folder=$(realpath -m "${2:-.}")
shift $(($# < 2 ? $# : 2))
case $action in
install | start | stop | boot) "$action" ;;
run) inside "$@" ;;
on)
    node=$1
    shift
    inside nsenter --target "$(cat "$folder/run/node$node.inner")" --net --uts -- "$@"
    ;;
*) die "$action is no action: install, start, run, on or stop" ;;
esac
