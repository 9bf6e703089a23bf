"""Answers GET on port 6443 over TLS with the host's name: enough of an apiserver for health checks and for seeing who answers."""

import http.server
import socket
import ssl

BODY = f"ok from {socket.gethostname()}\n".encode()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        # Here, in the connection's own thread: a client that never shakes hands must not hold up the others.
        self.request = CONTEXT.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_GET(self):
        known = self.path in ("/readyz", "/healthz", "/livez")
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(BODY) if known else 0))
        self.end_headers()
        if known:
            self.wfile.write(BODY)

    def log_message(self, *_):
        pass


CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CONTEXT.load_cert_chain("/etc/apiserver/certificate.pem", "/etc/apiserver/key.pem")
http.server.ThreadingHTTPServer(("", 6443), Answer).serve_forever()
