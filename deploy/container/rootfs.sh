#!/bin/sh
# Makes the folder of an image: Python, oinetd and what they need, from Debian's packages and wheels; no shell, no package
# manager, no registry. It runs on the release of Debian whose packages it takes (deploy/container/Dockerfile does).
#     rootfs.sh WHEEL FOLDER
set -eu
wheel=$1 root=$2
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# What python3 needs for what oinetd imports. Not: readline, curses, sqlite, tk, the tests.
names="python$version-minimal libpython$version-minimal libpython$version-stdlib libc6 libgcc-s1 zlib1g libffi8 libexpat1
  libssl3 libbz2-1.0 liblzma5 libuuid1"
case $version in 3.13) names=$(echo "$names" | sed 's/libssl3/libssl3t64/') ;; esac
(cd "$packages" && apt-get download -q $names >/dev/null)
mkdir -p "$root"
for package in "$packages"/*.deb; do dpkg-deb --extract "$package" "$root"; done

/usr/bin/python3 -m venv "$packages/env"
"$packages/env/bin/python" -m pip --quiet --disable-pip-version-check install --no-compile --only-binary :all: \
  --target "$root/usr/lib/python3/dist-packages" "$wheel" >/dev/null
rm -rf "$root/usr/lib/python3/dist-packages/bin" "$root/usr/lib/python3/dist-packages/share"

# A third of it is never used: other languages' character sets, documentation, parts of the standard library for people.
rm -rf "$root/usr/share" "$root"/usr/lib/*/gconv "$root/usr/lib/mime" "$root/etc/python$version"
for name in ensurepip idlelib lib2to3 pydoc_data tkinter turtledemo unittest test sqlite3 curses distutils xmlrpc wsgiref; do
  rm -rf "$root/usr/lib/python$version/$name"
done
for name in turtle pdb pydoc doctest pickletools; do rm -f "$root/usr/lib/python$version/$name.py"; done
for name in _testcapi _testbuffer _testinternalcapi _testmultiphase _sqlite3 _curses _curses_panel \
  _codecs_jp _codecs_hk _codecs_cn _codecs_kr _codecs_tw _codecs_iso2022 _ctypes_test; do
  rm -f "$root/usr/lib/python$version/lib-dynload/$name".*.so
done
rm -f "$root"/lib/*/libmvec.so.1 "$root"/usr/lib/*/libmvec.so.1
# uvloop's wheel has its symbols: 12 MB.
if command -v strip >/dev/null; then find "$root/usr/lib/python3" -name '*.so' -exec strip --strip-unneeded {} +; fi
find "$root" -name '__pycache__' -prune -exec rm -rf {} +

mkdir -p "$root/etc/ssl/certs" "$root/run/oinetd" "$root/tmp" "$root/proc" "$root/sys" "$root/dev" "$root/var/log"
chmod 1777 "$root/tmp"
chown 65532:65532 "$root/run/oinetd"
printf 'root:x:0:0:root:/:/nonexistent\noinetd:x:65532:65532:oinetd:/nonexistent:/nonexistent\n' > "$root/etc/passwd"
printf 'root:x:0:\noinetd:x:65532:\n' > "$root/etc/group"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
printf '# Mount a configuration here.\n' > "$root/etc/oinetd.conf"
ln -sf "python$version" "$root/usr/bin/python3"
printf '#!/usr/bin/python3 -I\nimport sys\n\nfrom oinetd.process.cli import main\n\nsys.exit(main())\n' > "$root/usr/bin/oinetd"
chmod 755 "$root/usr/bin/oinetd"
# The bytecode is made here: the root of a container is read-only.
"$packages/env/bin/python" -m compileall -q --invalidation-mode unchecked-hash -s "$root" -p / \
  "$root/usr/lib/python$version" "$root/usr/lib/python3/dist-packages" || true
