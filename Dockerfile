FROM python:3.13-slim-bookworm AS builder
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/build.txt requirements/runtime.txt requirements/
# The environment has no pip of its own: nothing is installed into it later.
RUN pip install --no-cache-dir --require-hashes -r requirements/build.txt \
    && python -m venv --without-pip /opt/resproxy \
    && pip --python /opt/resproxy/bin/python install --no-cache-dir --require-hashes \
        -r requirements/runtime.txt
COPY pyproject.toml setup.py README.md LICENSE ./
COPY resproxy/ resproxy/
RUN RESPROXY_REQUIRE_COMPILED=1 \
        pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip --python /opt/resproxy/bin/python install --no-cache-dir --no-deps /wheels/*.whl \
    && /opt/resproxy/bin/resproxy --version | grep -q '(compiled)'

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="resproxy" \
      org.opencontainers.image.description="A Redis-protocol sidecar proxy" \
      org.opencontainers.image.licenses="Apache-2.0"
# /run/resproxy is where a volume for the Unix socket goes; a fresh one takes its owner from here.
RUN groupadd --gid 10001 resproxy \
    && useradd --uid 10001 --gid resproxy --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin resproxy \
    && install -d -o resproxy -g resproxy /run/resproxy
COPY --from=builder /opt/resproxy /opt/resproxy
ENV PATH=/opt/resproxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    RESPROXY_LISTEN=0.0.0.0:6380
USER 10001:10001
EXPOSE 6380
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s --retries=3 CMD ["resproxy", "ping"]
ENTRYPOINT ["resproxy"]
CMD ["run"]
