#!/usr/bin/env bash
# Everything that has to hold before a change is merged; the closing lines are the test
# runner's own.
#
#   ./test.sh          all of it: format, lints, documents, the chart, the release binary in an
#                      empty root, instructions of the frame path, ten seconds of each fuzz
#                      target, twenty simulated rings, unit, contract and ring tests
#   ./test.sh quick    unit tests and the rules of the architecture; needs no Postgres
#   ./test.sh continuity [FILTER]
#                      the long forms of the rolls, kills and outages, and the figures of
#                      failover, one after another (docs/testing.md); prints its tables
#   ./test.sh soak [MINUTES]
#                      restarts, kills and stops of the database under 2,000 sessions (RINGSPAN_CLIENTS)
#                      for half an hour; a node that stays must not grow
#   ./test.sh faults [--upgrade] [PATTERN]
#                      the fault matrix (docs/testing.md) on real processes, and its table; with
#                      --upgrade also two releases in one ring
#   ./test.sh overload clients that do harm, one kind after another, beside regular ones; prints
#                      what they cost (RINGSPAN_BIN: of another binary, as a release build)
#   ./test.sh mutants  breaks the source on purpose, in a copy, and expects tests to notice
#   ./test.sh protocols
#                      all cases of the Autobahn test suite, against both ends of an opaque route
#   ./test.sh upgrade [REV]
#                      a ring goes from an earlier revision to this one and back, under load
#   ./test.sh fuzz [SECONDS] [TARGET…]
#                      the fuzzer on every reader of outside bytes (a nightly toolchain)
#   ./test.sh model    ownership, ledger and handoff in every order within bounds; prints its
#                      tables: states, and each broken rule with what caught it
#   ./test.sh simulate [SEEDS [FIRST_SEED]]
#                      the real nodes over a simulated network, clock and database, 1,000 seeds of
#                      faults; prints what it met and what it found
#   ./test.sh guards   instructions of the frame path against benches/guards.txt (a release build)
#
# What is missing is installed where this script may (root and apt-get), and said:
#   - a C compiler (bundled SQLite and the TLS library are C)
#   - the Postgres server programs (tests start servers of their own and remove them)
#   - valgrind, to count instructions
#   - nftables, iproute2 and libfaketime, for `faults`
#   - a C compiler and the Rust target for musl, for a static release binary; else it is dynamic
# npm and pip are optional: with them the tests run the real Codex CLI and the OpenAI SDKs, and
# the chart is validated.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '\n==> %s\n' "$*"; }
fail() { printf 'test.sh: %s\n' "$*" >&2; exit 1; }

mode=${1:-full}
case $mode in
full | quick | continuity | soak | faults | overload | mutants | model | simulate | guards | protocols | upgrade) ;;
fuzz) exec fuzz/run.sh "${@:2}" ;;
*) sed -n '2,/^set/s/^#\( \|$\)//p' "$0"; exit 64 ;;
esac

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

updated=
apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    if [ -z "$updated" ]; then
        apt-get -o Acquire::Retries=3 -qq update </dev/null
        updated=1
    fi
    apt-get -o Acquire::Retries=3 -qq install -y --no-install-recommends "$@" </dev/null >/dev/null
}

need_compiler() {
    command -v cc >/dev/null && return
    may_install || fail "no C compiler (cc). Debian: apt-get install gcc libc6-dev"
    say "installing a C compiler (gcc, libc6-dev)"
    apt_install gcc libc6-dev
}

# Looks where tests/support/postgres.rs looks.
has_postgres() {
    local dir
    for dir in "${PG_BIN:-}" /usr/lib/postgresql/*/bin ${PATH//:/ }; do
        [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && [ -x "$dir/pg_isready" ] && return
    done
    return 1
}

need_postgres() {
    has_postgres && return
    may_install || fail "no Postgres server programs (initdb, postgres, pg_isready).
  Debian: apt-get install postgresql; elsewhere: install Postgres and set PG_BIN to its bin directory.
  Without it: ./test.sh quick"
    say "installing the Postgres server programs (Debian package postgresql); no server is set up or started"
    apt_install postgresql-common
    # The package would make a database cluster and start it; the tests make their own.
    sed -i 's/^#\{0,1\} *create_main_cluster *=.*/create_main_cluster = false/' \
        /etc/postgresql-common/createcluster.conf
    apt_install postgresql
    has_postgres || fail "the package postgresql brought no initdb"
}

run() {
    say "$*"
    "$@"
}

# Components that a minimal toolchain lacks are skipped aloud.
lint() {
    if cargo fmt --version >/dev/null 2>&1; then
        run cargo fmt --check
    else
        say "skipped: cargo fmt (rustup component add rustfmt)"
    fi
    if cargo clippy --version >/dev/null 2>&1; then
        run cargo clippy --locked --all-targets -- -D warnings
        run cargo clippy --locked --features simulation --example simulation -- -D warnings
    else
        say "skipped: cargo clippy (rustup component add clippy)"
    fi
    # Links to private items are for readers of the source, who are all the readers there are.
    RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" run cargo doc --locked --no-deps --document-private-items
    if command -v cargo-deny >/dev/null; then
        run cargo deny check licenses bans sources
    else
        say "skipped: cargo deny (not installed)"
    fi
}

# Validates the chart and sees planted faults caught, by the program that the tests run too.
chart() {
    if ! python3 -c 'import ensurepip' 2>/dev/null && may_install; then
        say "installing python3-venv, for the validation of the chart"
        apt_install python3 python3-venv || true
    fi
    run cargo test --locked --no-run
    local code=0 part
    export RINGSPAN_BIN=${CARGO_TARGET_DIR:-target}/debug/ringspan
    for part in "" --mutants; do
        say "charts/validate $part"
        charts/validate $part || code=$?
        [ "$code" = 75 ] && { say "skipped: the chart (see above)"; break; }
        [ "$code" = 0 ] || fail "the chart has faults"
    done
    unset RINGSPAN_BIN
}

# Builds the binary of the image and runs it as the image would; the figures are in the output.
image() {
    local target binary code=0
    target=$(uname -m)-unknown-linux-musl
    if ! command -v musl-gcc >/dev/null && may_install; then
        say "installing musl-tools, for a static binary"
        apt_install musl-tools || true
    fi
    if command -v rustup >/dev/null && [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
        say "adding the Rust target $target"
        timeout 120 rustup target add "$target" || true
    fi
    say "deploy/build"
    binary=$(deploy/build)
    say "deploy/rootcheck $binary"
    deploy/rootcheck "$binary" || code=$?
    [ "$code" = 75 ] && { say "skipped: deploy/rootcheck (see above)"; return; }
    [ "$code" = 0 ] || fail "the release binary does not run as its image would"
}

tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        run cargo nextest run --locked --no-fail-fast "$@"
    else
        run cargo test --locked --no-fail-fast "$@"
    fi
}

# What stands for the previous release: schema 4, before labels left the index.
PREVIOUS=7438066

# Builds the binary of another revision, once, apart from this tree.
previous_release() {
    local rev dir
    rev=$(git rev-parse --verify --quiet "$1^{commit}") || fail "no revision $1 in this clone"
    dir=${CARGO_TARGET_DIR:-$PWD/target}/upgrade
    export RINGSPAN_PREVIOUS=$dir/$rev/ringspan
    [ -x "$RINGSPAN_PREVIOUS" ] && return
    say "building $(git log -1 --format='%h (%s)' "$rev")"
    mkdir -p "$dir/$rev/source"
    git archive "$rev" | tar -x -C "$dir/$rev/source"
    cargo build --locked --bin ringspan --manifest-path "$dir/$rev/source/Cargo.toml" \
        --target-dir "$dir/build"
    cp "$dir/build/debug/ringspan" "$RINGSPAN_PREVIOUS"
}

# Instructions of parts of the frame path against their baseline.
guards() {
    if ! command -v valgrind >/dev/null && may_install; then
        say "installing valgrind, to count instructions"
        apt_install valgrind || true
    fi
    run benches/guards.sh
}

# So many seeds from that one on, on all processors (RINGSPAN_JOBS).
simulate() {
    run cargo build --locked --features simulation --example simulation
    run "${CARGO_TARGET_DIR:-target}/debug/examples/simulation" "$@"
}

# A short run of the fuzzer, where it is installed; the unit tests replay its corpus everywhere.
fuzz() {
    local code=0
    say "fuzz/run.sh 10"
    fuzz/run.sh 10 || code=$?
    [ "$code" = 75 ] && { say "skipped: the fuzzer (see above)"; return; }
    [ "$code" = 0 ] || fail "the fuzzer found something: see fuzz/artifacts"
}

command -v cargo >/dev/null || fail "no Rust toolchain; see https://rustup.rs"
need_compiler
if [ "$mode" = quick ]; then
    tests --lib --bins --test architecture --test documents
    exit
fi
if [ "$mode" = model ]; then
    # Optimised a little: the larger bounds have millions of states.
    export CARGO_PROFILE_DEV_OPT_LEVEL=1
    run cargo test --locked --lib app::tests::model -- --include-ignored --nocapture --test-threads=1
    exit
fi
if [ "$mode" = guards ]; then
    guards
    exit
fi
if [ "$mode" = simulate ]; then
    simulate "${2:-1000}" "${3:-1}"
    exit
fi
need_postgres
if [ "$mode" = mutants ]; then
    run tests/mutants/run.sh "${@:2}"
    exit
fi
command -v npm >/dev/null || say "no npm: the tests with the Codex CLI and openai-node will be skipped"
command -v python3 >/dev/null || say "no python3: the tests with Codex and openai-python will be skipped"
if [ "$mode" = continuity ]; then
    run cargo test --locked --no-fail-fast --test it -- --ignored --nocapture --test-threads=1 \
        --skip autobahn:: --skip faults:: --skip overload:: --skip soak:: --skip upgrade:: "${@:2}"
    exit
fi
if [ "$mode" = soak ]; then
    export RINGSPAN_SOAK_MINUTES=${2:-30}
    run cargo test --locked --test it -- --ignored --nocapture --exact soak::long_soak
    exit
fi
if [ "$mode" = protocols ]; then
    run cargo test --locked --test it -- --ignored --nocapture --test-threads=1 autobahn::
    exit
fi
if [ "$mode" = faults ]; then
    shift
    if [ "${1:-}" = --upgrade ]; then
        shift
        previous_release "$PREVIOUS"
    fi
    if may_install; then
        apt_install iproute2 nftables libfaketime || say "some of the matrix may not run"
    fi
    run tests/faults/run.sh "$@"
    exit
fi
if [ "$mode" = overload ]; then
    run cargo test --locked --test it -- --ignored --nocapture overload::
    exit
fi
if [ "$mode" = upgrade ]; then
    previous_release "${2:-$PREVIOUS}"
    run cargo test --locked --test it -- --ignored --nocapture upgrade::
    exit
fi
lint
chart
image
guards
fuzz
simulate 20
tests
