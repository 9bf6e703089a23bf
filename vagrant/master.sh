#!/usr/bin/env bash
# Starts a TLS server on port 6443 in place of an apiserver.
set -euo pipefail

install -d -m 0700 /etc/apiserver
if [[ ! -e /etc/apiserver/key.pem ]]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=$(hostname)" \
        -keyout /etc/apiserver/key.pem -out /etc/apiserver/certificate.pem
fi
install -m 0644 /tmp/apiserver.py /etc/apiserver/apiserver.py

cat >/etc/systemd/system/apiserver.service <<'UNIT'
[Unit]
Description=A TLS server in place of a kube-apiserver
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/usr/bin/python3 /etc/apiserver/apiserver.py
Restart=on-failure

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable apiserver
systemctl restart apiserver
