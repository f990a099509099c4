#!/bin/sh
# Fuzzes the native parsers of what a client sends before the relay: libFuzzer, with the address and undefined-behaviour
# sanitizers, beginning with tests/fuzz/corpus.
#   sh tests/fuzz/run.sh [seconds [seed]]     60 seconds and a seed of the clock where they are not given
# PYTHON names the interpreter; it needs Cython. An input that fails is left in build/fuzz.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
seconds=${1:-60}
seed=${2:-0}
place=build/fuzz
mkdir -p "$place/found"
"$PYTHON" -m cython -3 -I _fastpath tests/fuzz/target.pyx -o "$place/target.c"
include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
# The module's own functions are never called: the symbols of Python may be missing.
clang -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -Wno-everything -I "$include" \
    "$place/target.c" -o "$place/target" -fno-pie -no-pie -Wl,--unresolved-symbols=ignore-all
exec "$place/target" -max_total_time="$seconds" -seed="$seed" -max_len=20000 -timeout=10 -print_final_stats=1 \
    -artifact_prefix="$place/" "$place/found" tests/fuzz/corpus
