#!/bin/sh
# Builds the extension with a sanitizer, apart from the tree, and runs the tests of the data plane under it.
#   sh tests/sanitize.sh address    address and undefined-behaviour sanitizers (the default)
#   sh tests/sanitize.sh thread     thread sanitizer: rings, inboxes, gates, listeners
#   sh tests/sanitize.sh faults     as address, while system calls and allocations fail at random (SOAK_SECONDS, SOAK_SEED)
# PYTHON names the interpreter; it needs setuptools, Cython and the test packages. What follows the kind goes to pytest.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
kind=${1:-address}
[ $# -gt 0 ] && shift
case $kind in
address | faults)
    flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    libraries="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
    # Python itself keeps memory to the end; what the data plane leaks shows in its own counters.
    export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
    tests="tests/engine/native tests/unit/test_fastpath_access.py tests/unit/test_fastpath_gate.py
        tests/unit/test_fastpath_group.py tests/unit/test_moves.py
        tests/preamble/test_accept_proxy_udp.py tests/udp/test_batch.py tests/udp/test_lanes.py tests/udp/test_reactor.py tests/udp/test_reload.py"
    if [ "$kind" = faults ]; then
        tests=tests/soak/test_faults.py
        # Calls by other names, which the sanitizer does not take for itself.
        for call in malloc calloc realloc accept4 epoll_ctl splice pipe2; do
            flags="$flags -D$call=faulty_$call"
        done
        mkdir -p build
        gcc -shared -fPIC -O2 -DRENAMED -o build/faults.so tests/soak/faults.c
        FAULTS_LIBRARY=$PWD/build/faults.so
        export FAULTS_LIBRARY
        libraries="$libraries $FAULTS_LIBRARY"
    fi
    ;;
thread)
    flags="-fsanitize=thread"
    libraries="$(gcc -print-file-name=libtsan.so)"
    # Reports come from the extension alone: the interpreter was not built with it.
    export TSAN_OPTIONS="halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1"
    tests="tests/engine/native/test_accept.py tests/engine/native/test_groups.py tests/engine/native/test_moving.py tests/engine/native/test_passport.py
        tests/engine/native/test_pipes.py tests/unit/test_fastpath_gate.py
        tests/unit/test_forwarder_threads.py tests/unit/test_moves.py tests/udp/test_reactor.py"
    ;;
*)
    echo "usage: $0 address|thread|faults [pytest options]" >&2
    exit 64
    ;;
esac
place=build/sanitize-$kind
rm -rf "$place"
mkdir -p "$place"
cp -R pyproject.toml README.md LICENSE oinetd _fastpath _package tests "$place" 2>/dev/null || true
rm -f "$place"/oinetd/_fastpath*.so "$place"/_fastpath/*.c
case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
cd "$place"
CFLAGS="$flags -O1 -g -fno-omit-frame-pointer" LDFLAGS="$flags" \
    "$PYTHON" -W ignore -c "from setuptools import setup; setup()" --quiet build_ext --inplace
# Address randomisation beyond what the sanitizers know makes them refuse to start.
# shellcheck disable=SC2086
exec setarch -R env LD_PRELOAD="$libraries" PYTHONPATH=. "$PYTHON" -m pytest -p no:cacheprovider -q $tests "$@"
