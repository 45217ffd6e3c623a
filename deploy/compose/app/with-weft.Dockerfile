# The same service with its sidecar in the same container: `weft run` starts it, and ends with it.
ARG WEFT=weft-demo/weft
ARG APP=weft-demo/app
FROM ${WEFT} AS weft
FROM ${APP}
COPY --from=weft --chown=65532:65532 /run/weft /run/weft
COPY --from=weft /usr/local/bin/weft /usr/local/bin/weft
# One user for both: the join token is the sidecar's, and nothing is intercepted here.
USER 65532:65532
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["/usr/local/bin/weft", "health"]
ENTRYPOINT ["/usr/local/bin/weft", "run", "--config", "/etc/weft/weft.yaml", "--token-file", "/run/weft/token/join"]
