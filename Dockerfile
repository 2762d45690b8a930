# syntax=docker/dockerfile:1
# The image: one binary that runs as nobody, from a root that is never written. No shell, no
# package manager. Build:
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION=$(git rev-parse HEAD) \
#     --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) -t ringspan:0.1.0 .
#
# Pin both base images by digest (FROM …@sha256:…) where releases are built: tags move.

ARG RUST=1.95
FROM docker.io/library/rust:${RUST}-bookworm AS build
WORKDIR /src
# The same sources give the same bytes: paths of this machine do not get into the binary, and
# dates are the commit's.
ARG SOURCE_DATE_EPOCH=0
ENV CARGO_INCREMENTAL=0 \
    CARGO_TERM_COLOR=never \
    RUSTFLAGS="--remap-path-prefix=/src=. --remap-path-prefix=/usr/local/cargo=cargo" \
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
# Dependencies first: this layer is built anew only when they change. The empty stand-ins have the
# places that Cargo.toml names.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches \
    && echo 'fn main() {}' | tee src/main.rs benches/placement.rs benches/wire.rs build.rs >/dev/null \
    && touch src/lib.rs \
    && cargo build --release --locked --bin ringspan \
    && rm -rf src benches build.rs target/release/.fingerprint/ringspan-* target/release/build/ringspan-*
COPY build.rs ./
COPY proto proto
COPY migrations migrations
COPY benches benches
COPY src src
ARG REVISION=unknown
ENV RINGSPAN_REVISION=${REVISION}
RUN cargo build --release --locked --bin ringspan \
    && strip target/release/ringspan \
    && target/release/ringspan --version

# glibc, certificates and time zones; uid 65532 is its "nonroot".
FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ringspan" \
      org.opencontainers.image.description="A ring of equal nodes that gives every session exactly one owner" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build --chown=0:0 --chmod=0555 /src/target/release/ringspan /usr/local/bin/ringspan
USER 65532:65532
WORKDIR /
EXPOSE 8080 50051 9090
# The drain begins with it; give the platform more time than dwell, timeout and cleanup together.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/ringspan"]
CMD ["serve"]
