"""Weft as a contestant of the side-by-side benchmark. Needs OURS_GATEWAY and OURS_SIDECAR: the path of the release
binary `weft`, both. Every default is on: outlier detection, retries and their budget, metrics; the sidecars report to
a collector, which runs beside them and is not counted."""
import json, os, subprocess


class Weft:
    tcp = True  # knows the option of that name, see `more`

    def why_not(self, scenario, o):
        v = "OURS_SIDECAR" if o["kind"] == "mesh" else "OURS_GATEWAY"
        if not os.environ.get(v):
            return f"${v} is not set"

    def gateway(self, c, o):
        n = o.get("routes", 0)
        groups = min(10, n) or 1
        endpoints = [f"{ip}:{port}" for ip, port in c.endpoints]
        listener = {"name": "public", "address": f"127.0.0.1:{c.port}"}
        if o.get("tls"):
            listener["tls"] = {"cert": f"{c.certs}/gw.pem", "key": f"{c.certs}/gw.key"}
        extra = {}
        ingress = {"listeners": [listener]}
        if o.get("jwt"):
            ingress["authn"] = {"users": {"jwt": {"issuer": "https://issuer.bench", "audience": ["bench"], "jwks": {"file": f"{c.certs}/jwks.json"}}}}
            extra["authn"] = "users"
        if o.get("ratelimit"):
            ingress["limits"] = {"all": {"key": "route", "rate": "1000000/s", "burst": 1000000}}
            extra["limits"] = ["all"]
        if n:
            ingress["routes"] = [{"match": {"path": f"/r{i}/*"}, "to": f"u{i % groups}", **extra} for i in range(n)]
        else:
            ingress["routes"] = [{"to": "u0", **extra}]
        config = {"trust_domain": "bench.local", "admin": {"address": f"127.0.0.1:{c.port + 10}"},
                  "services": {f"u{i}": {"mesh": False, "endpoints": endpoints} for i in range(groups)}, "ingress": ingress}
        return [dict(role="gateway", cmd=[os.environ["OURS_GATEWAY"], "ingress", "--config", c.write("weft.yaml", json.dumps(config))])]

    def mesh(self, c, o):
        peers = [(ip, c.port + 1) for ip in c.replicas]
        c.mtls_ports = peers
        ingress_certificate(c)
        # Opaque TCP has a port of its own in its callers' sidecar, which is where the load goes then.
        way_out, http_out = ({"listen": f"127.0.0.1:{c.port}"}, c.port + 4) if o.get("tcp") else ({"hosts": ["127.0.0.1", "bench", "gw.bench"]}, c.port)
        app = {"protocol": "tcp" if o.get("tcp") else "grpc" if o["proto"] == "h2" else "http", "port": c.app[1], **way_out}
        services = {"client": {"identity": "spiffe://bench.local/ns/default/sa/client", "endpoints": ["127.0.0.1:9"]},
                    "server": {"identity": "spiffe://bench.local/ns/default/sa/server", "endpoints": [f"{ip}:{port}" for ip, port in peers],
                               "allow": [{"from": ["client"]}], **app}}

        def config(name, identity, admin, outbound, inbound, **more):
            return c.write(name, json.dumps({
                "trust_domain": "bench.local", "admin": {"address": f"127.0.0.1:{admin}"}, "services": services,
                "collector": {"address": f"127.0.0.1:{c.port + 9}"},
                "identity": {"cert": f"{identity}.pem", "key": f"{identity}.key", "bundle": f"{c.certs}/ca.pem"},
                "sidecar": {"outbound": {"address": f"127.0.0.1:{outbound}"}, "inbound": {"address": f"0.0.0.0:{inbound}"}}, **more}))

        col = config("collector.yaml", c.dir / "ingress", c.port + 12, c.port + 5, c.port + 6, ingress={"listeners": [{"name": "unused", "address": f"127.0.0.1:{c.port + 7}"}]})
        inb = config("inbound.yaml", f"{c.certs}/server", c.port + 11, c.port + 2, c.port + 1)
        out = config("outbound.yaml", f"{c.certs}/client", c.port + 10, http_out, c.port + 3)
        weft = os.environ["OURS_SIDECAR"]
        return [dict(role="collector", cmd=[weft, "ingress", "--config", col], wait=("127.0.0.1", c.port + 9), count=False, cpu=os.environ.get("BENCH_CPU_LOAD", "1")),
                dict(role="inbound", cmd=[weft, "sidecar", "--service", "server", "--config", inb], wait=peers[0]),
                dict(role="outbound", cmd=[weft, "sidecar", "--service", "client", "--config", out])]


def ingress_certificate(c):
    """The collector has to be the ingress of the trust domain; the benchmark's CA signs a certificate for it."""
    def sh(*cmd):
        subprocess.run([str(x) for x in cmd], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    at = c.dir / "ingress"
    sh("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{at}.ec")
    sh("openssl", "pkcs8", "-topk8", "-nocrypt", "-in", f"{at}.ec", "-out", f"{at}.key")
    sh("openssl", "req", "-new", "-key", f"{at}.key", "-subj", "/CN=ingress.bench", "-out", f"{at}.csr")
    (c.dir / "ingress.ext").write_text("subjectAltName=URI:spiffe://bench.local/service/ingress\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
                                       "extendedKeyUsage=serverAuth,clientAuth\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
    sh("openssl", "x509", "-req", "-in", f"{at}.csr", "-CA", c.certs / "ca.pem", "-CAkey", c.certs / "ca.key", "-CAcreateserial", "-days", "3650",
       "-extfile", f"{at}.ext", "-out", f"{at}.pem")


CONTESTANTS = {"weft": Weft()}
