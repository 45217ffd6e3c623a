"""HAProxy as a pair of TCP proxies, for the scenarios of `more` with opaque TCP. Binary: $HAPROXY, else `haproxy` on PATH."""
import os
from shutil import which


class HAProxyTcp:
    """HAProxy's pair in TCP mode: each connection of the client is one TLS connection between the two."""
    tcp = True

    def why_not(self, scenario, o):
        if not o.get("tcp"):
            return "n/a"
        if not (os.environ.get("HAPROXY") or which("haproxy")):
            return "no haproxy binary"

    def mesh(self, c, o):
        import haproxy  # as the benchmark has loaded it
        base = haproxy.BASE.replace("mode http", "mode tcp").replace("  http-reuse always\n", "").replace("  timeout http-keep-alive 1h\n", "")
        base = base.replace("timeout server 1m", "timeout server 1h")
        peers = [(ip, c.port + 1) for ip in c.replicas]
        c.mtls_ports = peers
        inb = base + "frontend inb\n" + "".join(f"  bind {ip}:{p} ssl crt {c.certs}/server-full.pem ca-file {c.certs}/ca.pem verify required\n" for ip, p in peers)
        # As in the HTTP pair, the peer is checked by CN.
        inb += f"  tcp-request session reject unless {{ ssl_c_s_dn(cn) -m str client.bench }}\n  default_backend app\nbackend app\n  server app {c.app[0]}:{c.app[1]}\n"
        out = base + f"frontend out\n  bind 127.0.0.1:{c.port}\n  default_backend peer\nbackend peer\n  balance leastconn\n"
        out += "".join(f"  server s{i} {ip}:{p} ssl crt {c.certs}/client-full.pem ca-file {c.certs}/ca.pem verify required verifyhost server.bench sni str(server.bench)\n"
                       for i, (ip, p) in enumerate(peers))
        binary = c.bin("HAPROXY", "haproxy")
        return [dict(role="inbound", cmd=[binary, "-db", "-f", c.write("inbound.cfg", inb)], wait=peers[0]),
                dict(role="outbound", cmd=[binary, "-db", "-f", c.write("outbound.cfg", out)])]


CONTESTANTS = {"haproxy-tcp": HAProxyTcp()}
