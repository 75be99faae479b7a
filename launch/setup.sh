#!/usr/bin/env bash
# Make the virtual environment of this checkout and install the project into it, in place.
#
#   launch/setup.sh          what runs need
#   launch/setup.sh --dev    and what tests and checks need
#
# The second time nothing is installed: a stamp in the environment names what it was made from.
#
#   RLHF_RAY_VENV      where the environment lives      (default: .venv in the checkout)
#   RLHF_RAY_FLAVOUR   cpu or gpu                       (default: gpu where nvidia-smi lists one, else cpu)
#   RLHF_RAY_NO_BROWSER=1  do not look for a browser for the tests of the labelling page
#   RLHF_RAY_PYTHON    the Python to make it with       (default: the first of python3.11 .. 3.13, python3 that fits)
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${RLHF_RAY_VENV:-$checkout/.venv}
stamp=$venv/.rlhf-ray-stamp
log=$venv/.rlhf-ray-setup.log

say() { printf '[setup %3ss] %s\n' "$SECONDS" "$1"; }

# die WHAT REMEDY
die() {
    printf 'setup: %s\n       remedy: %s\n' "$1" "$2" >&2
    exit 1
}

# logged COMMAND...: keep its output in the log.
logged() { "$@" >>"$log" 2>&1; }

die_with_log() {
    tail -n 25 "$log" >&2
    die "$1 (the whole output: $log)" "$2"
}

choose_flavour() {
    if [[ -n ${RLHF_RAY_FLAVOUR:-} ]]; then
        [[ $RLHF_RAY_FLAVOUR == cpu || $RLHF_RAY_FLAVOUR == gpu ]] ||
            die "RLHF_RAY_FLAVOUR ('$RLHF_RAY_FLAVOUR') must be cpu or gpu" "export RLHF_RAY_FLAVOUR=cpu"
        echo "$RLHF_RAY_FLAVOUR"
    elif [[ -r $stamp ]]; then
        cut -d' ' -f1 "$stamp" # asking nvidia-smi again would cost a second
    elif nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
        echo gpu
    else
        echo cpu
    fi
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
    local candidate found=''
    for candidate in ${RLHF_RAY_PYTHON:-python3.11 python3.12 python3.13 python3}; do
        # A name on the PATH may still be a shim that leads nowhere, so each is asked.
        if fits "$candidate"; then
            command -v "$candidate"
            return
        fi
        found+=" $candidate ($("$candidate" --version 2>/dev/null || echo 'does not run'));"
    done
    die "needs Python 3.11, 3.12 or 3.13; tried:$found" \
        "install one (Debian, Ubuntu: apt-get install python3 python3-venv python3-dev) or set RLHF_RAY_PYTHON"
}

check_compiler() {
    local compiler=${CXX:-c++}
    command -v "$compiler" >/dev/null ||
        die "needs a C++ compiler and found no '$compiler': DeepSpeed compiles its operators on the machine" \
            "install one (Debian, Ubuntu: apt-get install g++) or set CXX"
    "$1" -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' ||
        die "needs the C headers of $1 to compile operators" \
            "install them (Debian, Ubuntu: apt-get install $("$1" -c 'import sys; print("python3.%d-dev" % sys.version_info[1])'))"
}

# An environment that was made halfway is made again, unless it may be somebody else's.
may_be_replaced() { [[ ! -e $venv || -f $log || ($venv == "$checkout/.venv" && -f $venv/pyvenv.cfg) ]]; }

make_venv() {
    if [[ -x $venv/bin/python ]] && fits "$venv/bin/python" && "$venv/bin/python" -m pip --version &>/dev/null; then
        return
    fi
    may_be_replaced ||
        die "$venv exists and is not a virtual environment with Python 3.11 to 3.13 and pip" \
            "remove it, or set RLHF_RAY_VENV to another place"
    local python
    python=$(find_python)
    check_compiler "$python"
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" ||
        die "$python could not make a virtual environment" \
            "install its venv module (Debian, Ubuntu: apt-get install python3-venv)"
}

install_uv() {
    say "installing uv, which installs the rest"
    logged "$venv/bin/python" -m pip install --constraint "$constraints" uv ||
        die_with_log "pip could not install uv" "check that pip reaches a package index (PIP_INDEX_URL, PIP_FIND_LINKS)"
}

# uv reads none of pip's settings, so those that say where packages are, are passed on.
export_package_sources() {
    if [[ -n ${PIP_FIND_LINKS:-} ]]; then export UV_FIND_LINKS=${UV_FIND_LINKS:-$PIP_FIND_LINKS}; fi
    if [[ -n ${PIP_INDEX_URL:-} ]]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}; fi
}

# uv_install OPTION...
uv_install() {
    logged "$venv/bin/uv" pip install --python "$venv/bin/python" --compile-bytecode \
        --constraints "$constraints" --editable "${checkout}[$extras]" "$@"
}

install_project() {
    say "installing rlhf-ray[$extras] and what it needs (minutes without a package cache; output: $log)"
    if [[ $flavour == gpu ]]; then
        uv_install || die_with_log "the packages could not be installed" "read the lines above"
        return
    fi
    local overrides=$checkout/launch/constraints/cpu-overrides.txt
    if ! uv_install --overrides "$overrides"; then
        say "no CPU build of torch in the indexes at hand; trying PyTorch's own"
        uv_install --overrides "$overrides" --torch-backend cpu ||
            die_with_log "the packages could not be installed" "read the lines above"
    fi
}

# The tests of the labelling page drive a browser, which no Python package brings.
ensure_browser() {
    local name
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$name" >/dev/null; then return; fi
    done
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        say "installing chromium, which the tests of the labelling page drive"
        if DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium &>/dev/null ||
            { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
                apt-get install -qq -y --no-install-recommends chromium; } &>/dev/null; then
            return
        fi
    fi
    say "found no browser: the tests of the labelling page will fail. Install chromium (Debian: apt-get install chromium), or set RLHF_RAY_NO_BROWSER=1 to go without"
}

want_dev=no
case ${1:-} in
    '') ;;
    --dev) want_dev=yes ;;
    *) die "unknown argument '$1'" "use launch/setup.sh or launch/setup.sh --dev" ;;
esac
[[ $(uname -s) == Linux ]] || die "runs on Linux only (this is $(uname -s))" "use a Linux machine, a container or WSL"

if [[ $want_dev == yes && ${RLHF_RAY_NO_BROWSER:-} != 1 ]]; then ensure_browser; fi

flavour=$(choose_flavour)
constraints=$checkout/launch/constraints/$flavour.txt
hash=$(cd "$checkout" && cat pyproject.toml launch/setup.sh launch/constraints/*.txt | cksum | tr ' ' -)
extras=$flavour
# What tests need is a superset: an environment that has it serves runs too, and keeps it.
if [[ $want_dev == yes ]] || grep -qs ',dev' "$stamp"; then
    extras=$flavour,dev
fi
wanted="$flavour $hash $extras $checkout"
if [[ -x $venv/bin/rlhf-ray && -r $stamp && $(<"$stamp") == "$wanted" ]]; then
    exit 0
fi

make_venv
rm -f "$stamp"
: >"$log"
check_compiler "$venv/bin/python"
install_uv
export_package_sources
install_project
echo "$wanted" >"$stamp"
say "done: $venv ($extras)"
