#!/usr/bin/env bash
# Installs xvip with its configuration: appliance.sh ADDRESS PEER PRIORITY
set -euo pipefail
address=$1
peer=$2
priority=$3

interface=$(ip -json -4 address show | python3 -c '
import json, sys
for link in json.load(sys.stdin):
    if any(one["local"] == sys.argv[1] for one in link["addr_info"]):
        print(link["ifname"])
' "$address")
[[ -n $interface ]] || { echo "no interface has $address" >&2; exit 1; }

install -m 0755 /tmp/xvip /usr/local/bin/xvip
install -d -m 0755 /etc/xvip
sed "s/@INTERFACE@/$interface/; s/@ADDRESS@/$address/; s/@PEER@/$peer/; s/@PRIORITY@/$priority/" /tmp/xvip.toml >/etc/xvip/xvip.toml
# For this lab only: a real one is `openssl rand -hex 32`, and stays among the nodes.
(umask 077 && printf '5a%.0s' {1..32} >/etc/xvip/sync.key)
install -m 0644 /tmp/xvip.service /etc/systemd/system/xvip.service
xvip check --offline -c /etc/xvip/xvip.toml
systemctl daemon-reload
systemctl enable xvip
systemctl restart xvip
