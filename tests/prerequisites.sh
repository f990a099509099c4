#!/bin/sh
# Debian packages that tests use beyond Python. Where we are root they are installed; elsewhere the tests that need
# them are skipped, and this says which and why.
set -u

# command, package, what it is for
wanted="
curl      curl      HTTP through the demo
iperf3    iperf3    real bulk traffic
ip        iproute2  network namespaces
mandoc    mandoc    the manual pages are well-formed
tcpdump   tcpdump   packet captures read back
wrk       wrk       the lab
perf      linux-perf  the lab
strace    strace    system calls counted by the bench
"

missing=$(printf '%s\n' "$wanted" | while read -r command package purpose; do
  [ -z "$command" ] || command -v "$command" >/dev/null || printf '%s ' "$package"
done)

if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing the Debian packages that tests need: $missing"
  # shellcheck disable=SC2086
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $missing; } \
    >/dev/null 2>&1 || echo "apt-get could not install all of them"
fi

# A server that starts by itself when it is installed is nobody's to install but the operator's.
command -v nginx >/dev/null || echo "skipped: the lab's real run (nginx is missing; Debian: apt install nginx)"
printf '%s\n' "$wanted" | while read -r command package purpose; do
  [ -z "$command" ] || command -v "$command" >/dev/null \
    || echo "skipped: $purpose ($command is missing; Debian: apt install $package)"
done
[ "$(id -u)" = 0 ] || echo "skipped: network namespaces, dropping privileges (these need root)"
