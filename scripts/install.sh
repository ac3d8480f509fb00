#!/usr/bin/env bash
# Install vmp (editable), what its tests need, and the pinned dependencies: into the active virtual
# environment, or into .venv, made if need be. Quick when nothing has changed since the last time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
need_gb=8 # torch with its CUDA libraries takes 6 GB, the wheels on their way in another 2

say() { printf -- '-- %s\n' "$*"; }
# The last line of every failure: what happened, and what to do.
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
trap 'die "interrupted; run the same command again, it goes on or starts afresh as needed"' INT TERM

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Print the first Python >= 3.10 on PATH that can make virtual environments.
find_python() {
    local name seen="" bare=""
    for name in python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do
        # a name on PATH may still be unable to run (pyenv's shims): only what answers counts
        command -v "$name" >/dev/null && [ -n "$(version "$name")" ] || continue
        seen="$seen $name=$(version "$name")"
        new_enough "$name" || continue
        if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
            command -v "$name"
            return
        fi
        bare=${bare:-$name}
    done
    if [ -n "$bare" ]; then
        die "$bare has no venv module: install it (Debian, Ubuntu:" \
            "\`sudo apt install python$(version "$bare")-venv\`) and run this again"
    fi
    die "Python >= 3.10 is needed, found:${seen:- none};" \
        "install one (Debian, Ubuntu: \`sudo apt install python3 python3-venv\`) and run this again"
}

check_disk() {
    local free_kb
    free_kb=$(df -k --output=avail "$1" 2>/dev/null | tail -n 1 | tr -d ' ') || return 0
    case $free_kb in '' | *[!0-9]*) return 0 ;; esac # this df does not say: let pip find out
    if [ "$free_kb" -lt $((need_gb * 1024 * 1024)) ]; then
        die "no disk: the install needs $need_gb GB and $1 has $((free_kb / 1024)) MB free;" \
            "free some, or move the checkout or activate a virtual environment on a larger disk"
    fi
}

make_venv() {
    local base
    base=$(find_python) || exit 1
    say "making .venv with $base (Python $(version "$base"))"
    "$base" -m venv --clear "$venv" ||
        die "$base could not make $venv; its last lines above say why"
}

has_torch() { compgen -G "$venv/lib/python3*/site-packages/torch/version.py" >/dev/null; }

# What an install depends on: the two files, the interpreter, and where the checkout lies.
fingerprint() {
    {
        cat pyproject.toml requirements/constraints.txt
        "$python" -c 'import sys; print(sys.version)'
        echo "$root"
    } | sha256sum | cut -d ' ' -f 1
}

network_errors='ConnectionError|Connection (refused|reset|broken)|ProxyError|SSLError|timed? ?out'
network_errors+='|Temporary failure in name resolution|Name or service not known|Max retries exceeded'
network_errors+='|Network is unreachable|No route to host|RemoteDisconnected'

# Turn what pip wrote to stderr into the one line that helps.
explain_pip() {
    if grep -qiE 'No space left on device|Errno 28|Errno 122' <<<"$1"; then
        die "no disk: pip ran out of space below $venv; free $need_gb GB and run this again"
    elif grep -qiE "$network_errors" <<<"$1"; then
        die "no network: pip cannot reach the package index; check the connection" \
            "(or HTTPS_PROXY, PIP_INDEX_URL) and run this again"
    fi
    die "pip failed; its last lines above say why. Run this again, or delete $venv first"
}

# pip's temporary files go beside what it installs: a small /tmp cannot fail then. Its errors are
# shown and kept in memory, for the disk may be full.
run_pip() {
    local errors
    {
        errors=$(TMPDIR="$venv/tmp" PIP_USER=0 "$python" -m pip install --no-input \
            --disable-pip-version-check --constraint requirements/constraints.txt "$@" 2>&1 1>&3 |
            while IFS= read -r line; do
                printf '%s\n' "$line" >&2
                printf '%s\n' "$line"
            done) || explain_pip "$errors"
    } 3>&1
}

install() {
    has_torch || check_disk "$venv"
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1 ||
        die "$venv has no pip: run \`$python -m ensurepip\`, or delete $venv and run this again"
    [ ! -f "$stamp" ] || echo "an update has begun" >"$stamp" # matches nothing until it has ended
    mkdir -p "$venv/tmp"
    say "installing into $venv (the first time: some 3 GB to download, a few minutes)"
    run_pip setuptools # builds here rather than in throw-away environments: pinned like the rest
    run_pip --no-build-isolation --use-pep517 --editable '.[dev]'
    rm -rf "$venv/tmp"
    say "checking the imports"
    "$python" -W ignore -c 'import av, torch, torchvision, vmp; import pytorchvideo.models' ||
        die "the installed packages do not fit together; delete $venv and run this again"
    printf '%s\n' "$fresh" >"$stamp"
}

exec 9<pyproject.toml # two of these at once would install into each other
command -v flock >/dev/null && { flock -n 9 || { say "waiting for another install"; flock 9; }; }

venv=${VIRTUAL_ENV:-$root/.venv}
python=$venv/bin/python
stamp=$venv/.vmp-installed
if [ -n "${VIRTUAL_ENV:-}" ]; then
    [ -x "$python" ] || die "VIRTUAL_ENV is $venv, which has no bin/python: \`unset VIRTUAL_ENV\`"
    new_enough "$python" || die "the active environment has Python $(version "$python")," \
        "3.10 is needed: \`deactivate\` it and run this again"
elif ! { [ -f "$stamp" ] && new_enough "$python"; }; then
    # nothing there, or a first install that did not get to its end: begin with an empty one
    if [ -d "$venv" ]; then check_disk "$venv"; else check_disk "$root"; fi
    make_venv
fi

fresh=$(fingerprint)
if [ "$(cat "$stamp" 2>/dev/null)" = "$fresh" ]; then
    say "installed already in $venv"
else
    install
    say "installed in $venv"
fi
