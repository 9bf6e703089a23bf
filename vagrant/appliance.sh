#!/usr/bin/env bash
# Installs xvip with its configuration: appliance.sh ADDRESS start|hold
set -euo pipefail
address=$1
action=$2

interface=$(ip -json -4 address show | python3 -c '
import json, sys
for link in json.load(sys.stdin):
    if any(one["local"] == sys.argv[1] for one in link["addr_info"]):
        print(link["ifname"])
' "$address")
[[ -n $interface ]] || { echo "no interface has $address" >&2; exit 1; }

install -m 0755 /tmp/xvip /usr/local/bin/xvip
install -d -m 0755 /etc/xvip
sed "s/@INTERFACE@/$interface/" /tmp/xvip.toml >/etc/xvip/xvip.toml
xvip check --offline -c /etc/xvip/xvip.toml

cat >/etc/systemd/system/xvip.service <<'UNIT'
[Unit]
Description=xvip load balancer
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/usr/local/bin/xvip run -c /etc/xvip/xvip.toml
RuntimeDirectory=xvip
Restart=on-failure
UNIT
systemctl daemon-reload

# No [Install] section: after a reboot the VIP is where it was started by hand, and nowhere twice.
if [[ $action == start ]]; then
    systemctl restart xvip
fi
