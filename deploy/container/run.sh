#!/bin/sh
# Runs an image of image.sh where there is no engine, with runc (apt install runc umoci), in the machine's network:
#     run.sh LAYOUT[:TAG] CONFIGURATION
# Read-only root, no capability, not root; ports below 1024 need net.ipv4.ip_unprivileged_port_start.
set -eu
image=$1 conf=$(realpath "$2")
case $image in *:*) ;; *) image=$image:latest ;; esac
bundle=$(mktemp -d)
trap 'rm -rf "$bundle"' EXIT
umoci unpack --image "$image" "$bundle/oinetd"
python3 - "$bundle/oinetd/config.json" "$conf" <<'EOF'
import json, sys

path, conf = sys.argv[1:]
with open(path) as file:
    spec = json.load(file)
process = spec["process"]
user = process["user"]["uid"]
spec["root"]["readonly"] = True
process["terminal"] = False
process["noNewPrivileges"] = True
process["capabilities"] = {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")}
process.pop("rlimits", None)
spec["linux"]["namespaces"] = [each for each in spec["linux"]["namespaces"] if each["type"] not in ("network", "user")]
spec["mounts"] = [each for each in spec["mounts"] if each["destination"] not in ("/sys", "/etc/resolv.conf")]
spec["mounts"] += [
    {"destination": "/etc/oinetd.conf", "type": "bind", "source": conf, "options": ["bind", "ro"]},
    {"destination": "/run/oinetd", "type": "tmpfs", "source": "tmpfs",
     "options": ["nosuid", "nodev", "mode=0700", f"uid={user}", f"gid={user}"]},
]
with open(path, "w") as file:
    json.dump(spec, file)
EOF
status=0
runc run --bundle "$bundle/oinetd" "oinetd-$$" || status=$?
exit "$status"
