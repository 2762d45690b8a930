# syntax=docker/dockerfile:1
# The image: one static binary that runs as nobody, from a root that is never written. No shell,
# no package manager, no C library. Build:
#
#   docker build --sbom=true --build-arg VERSION=0.1.0 --build-arg REVISION=$(git rev-parse HEAD) \
#     --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) -t ringspan:0.1.0 .
#
# Pin both base images by digest (FROM …@sha256:…) where releases are built: tags move.

ARG RUST=1.95
# A static binary names no packages; Cargo.lock, which is in the context, does.
ARG BUILDKIT_SBOM_SCAN_CONTEXT=true
FROM docker.io/library/rust:${RUST}-bookworm AS build
# musl-gcc compiles the C in SQLite, the TLS library and the allocator.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends musl-tools \
    && rm -rf /var/lib/apt/lists/* \
    && rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
# The same sources give the same bytes (deploy/build), and dates of layers are the commit's.
ARG SOURCE_DATE_EPOCH=0
ENV CARGO_TERM_COLOR=never SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
# Dependencies first: this layer is built anew only when they change. The empty stand-ins have the
# places that Cargo.toml names; what they left behind is not taken for the program.
COPY Cargo.toml Cargo.lock ./
COPY deploy/build deploy/
RUN mkdir -p src benches \
    && for file in src/main.rs benches/placement.rs benches/wire.rs build.rs; do \
           echo 'fn main() {}' >"$file"; \
       done \
    && touch src/lib.rs \
    && deploy/build --static \
    && rm -rf src benches build.rs \
    && find target -name '*ringspan*' -prune -exec rm -rf {} +
COPY build.rs ./
COPY proto proto
COPY migrations migrations
COPY benches benches
COPY src src
ARG REVISION=unknown
ENV RINGSPAN_REVISION=${REVISION}
RUN cp "$(deploy/build --static)" /ringspan && /ringspan --version

# Certificates of public authorities and time zones; uid 65532 is its "nonroot".
FROM gcr.io/distroless/static-debian12:nonroot
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ringspan" \
      org.opencontainers.image.description="A ring of equal nodes that gives every session exactly one owner" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build --chown=0:0 --chmod=0555 /ringspan /usr/local/bin/ringspan
USER 65532:65532
WORKDIR /
EXPOSE 8080 50051 9090
# The drain begins with it; give the platform more time than dwell, timeout and cleanup together.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/ringspan"]
CMD ["serve"]
