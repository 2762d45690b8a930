-- The ring: who is a member, who owns which session, and by which other names it is known.
-- Append-only: a later change is a later file, at most one for each release.

CREATE SEQUENCE epoch_seq;
COMMENT ON SEQUENCE epoch_seq IS 'Fencing numbers. Gaps are normal; a number is never handed out twice.';

CREATE SEQUENCE incarnation_seq;
COMMENT ON SEQUENCE incarnation_seq IS 'Lives of node processes. Never reused, so that a message to one life cannot reach a later one.';

CREATE TABLE ring_meta (
    singleton  BOOLEAN PRIMARY KEY DEFAULT true CHECK (singleton),
    version    BIGINT NOT NULL DEFAULT 0,
    cluster_id TEXT NOT NULL,
    secret     BYTEA NOT NULL CHECK (octet_length(secret) = 32)
);
COMMENT ON TABLE ring_meta IS 'The one row that all nodes of a ring share.';
COMMENT ON COLUMN ring_meta.version IS 'Grows by one with each membership change, never with a heartbeat or a claim. Announced on channel ringspan_ring.';
COMMENT ON COLUMN ring_meta.cluster_id IS 'Random, made at migration. Peers of another cluster are refused by it.';
COMMENT ON COLUMN ring_meta.secret IS 'Key of the hash that makes principals of credentials. Made at migration.';

CREATE TABLE member (
    incarnation      BIGINT PRIMARY KEY DEFAULT nextval('incarnation_seq'),
    node_id          TEXT NOT NULL,
    peer_addr        TEXT NOT NULL,
    build            TEXT NOT NULL,
    zone             TEXT,
    weight           BIGINT NOT NULL,
    capacity         BIGINT NOT NULL,
    load             BIGINT NOT NULL DEFAULT 0,
    process          TEXT NOT NULL,
    state            TEXT NOT NULL DEFAULT 'JOINING'
                     CHECK (state IN ('JOINING', 'ACTIVE', 'DRAINING', 'DEAD', 'GONE')),
    lease_expires_at TIMESTAMPTZ NOT NULL,
    registered_at    TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    ended_at         TIMESTAMPTZ
) WITH (fillfactor = 50);
-- Half-empty pages and no index on what a heartbeat writes: each heartbeat stays a HOT update.
CREATE UNIQUE INDEX member_live_node_id ON member (node_id)
    WHERE state IN ('JOINING', 'ACTIVE', 'DRAINING');
CREATE INDEX member_state ON member (state);
COMMENT ON TABLE member IS 'One row for each life of a node process.';
COMMENT ON COLUMN member.node_id IS 'Stable name of the pod or process; unique among the living.';
COMMENT ON COLUMN member.peer_addr IS 'host:port of its peer listener, as others reach it.';
COMMENT ON COLUMN member.process IS 'Identity of the process on its machine, by which a neighbour can prove its death.';
COMMENT ON COLUMN member.state IS 'JOINING, ACTIVE, DRAINING; DEAD and GONE are one-way.';
COMMENT ON COLUMN member.lease_expires_at IS 'By the clock of this database. A lapsed lease may still be renewed until someone sets DEAD.';
COMMENT ON COLUMN member.ended_at IS 'When it became DEAD or GONE; the row is swept some time later.';

CREATE TABLE session (
    id         BYTEA PRIMARY KEY CHECK (octet_length(id) = 16),
    principal  BYTEA NOT NULL CHECK (octet_length(principal) = 16),
    route      TEXT NOT NULL,
    key_label  TEXT NOT NULL,
    owner      BIGINT,
    epoch      BIGINT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('LIVE', 'QUIESCING', 'CLOSED')),
    taken_from BIGINT,
    created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    CHECK ((owner IS NULL) = (state = 'CLOSED'))
);
CREATE INDEX session_owner ON session (owner, id) WHERE owner IS NOT NULL;
-- A hash index, because a key may be longer than a B-tree entry.
CREATE INDEX session_key_label ON session USING hash (key_label);
CREATE INDEX session_closed ON session (updated_at) WHERE state = 'CLOSED';
COMMENT ON TABLE session IS 'One row for each session: the claim on it is the truth about its owner.';
COMMENT ON COLUMN session.key_label IS 'The key as an operator may see it.';
COMMENT ON COLUMN session.owner IS 'member.incarnation. No foreign key: its lock would write to the owner''s row at each claim.';
COMMENT ON COLUMN session.epoch IS 'Fencing number of the present ownership; every change of the row is conditional on it.';
COMMENT ON COLUMN session.taken_from IS 'The owner just before the present one, if there was another.';
COMMENT ON COLUMN session.updated_at IS 'Last change of owner or state.';

CREATE TABLE alias (
    principal  BYTEA NOT NULL CHECK (octet_length(principal) = 16),
    kind       TEXT NOT NULL CHECK (kind IN ('response', 'turn_state')),
    digest     BYTEA NOT NULL CHECK (octet_length(digest) = 16),
    session    BYTEA NOT NULL CHECK (octet_length(session) = 16),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (principal, kind, digest)
);
CREATE INDEX alias_updated_at ON alias (updated_at);
COMMENT ON TABLE alias IS 'Other names of a session, each valid within one principal.';
COMMENT ON COLUMN alias.digest IS 'First 16 bytes of the SHA-256 of the name; the name itself is not kept.';
COMMENT ON COLUMN alias.session IS 'session.id. No foreign key: an alias may be written before or after its row.';
