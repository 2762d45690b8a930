-- The ring: who is a member, who owns which session, and by which other names it is known.
-- Append-only: a later change is a later file, at most one for each release.
-- All times are milliseconds of the machine's boot clock, comparable within one boot only.

CREATE TABLE ring_meta (
    singleton   INTEGER PRIMARY KEY DEFAULT 1 CHECK (singleton = 1),
    -- Grows by one with each membership change, never with a heartbeat or a claim.
    version     INTEGER NOT NULL DEFAULT 0,
    -- Random, made at migration. Peers of another cluster are refused by it.
    cluster_id  TEXT NOT NULL,
    -- Key of the hash that makes principals of credentials. Made at migration.
    secret      BLOB NOT NULL CHECK (length(secret) = 32),
    -- The boot that the times in this file belong to.
    boot_id     TEXT NOT NULL DEFAULT '',
    -- Last number handed out; never handed out twice.
    epoch       INTEGER NOT NULL DEFAULT 0,
    incarnation INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One row for each life of a node process.
CREATE TABLE member (
    incarnation      INTEGER PRIMARY KEY,
    node_id          TEXT NOT NULL,
    peer_addr        TEXT NOT NULL,
    build            TEXT NOT NULL,
    zone             TEXT,
    weight           INTEGER NOT NULL,
    capacity         INTEGER NOT NULL,
    load             INTEGER NOT NULL DEFAULT 0,
    process          TEXT NOT NULL,
    -- DEAD and GONE are one-way.
    state            TEXT NOT NULL DEFAULT 'JOINING'
                     CHECK (state IN ('JOINING', 'ACTIVE', 'DRAINING', 'DEAD', 'GONE')),
    -- A lapsed lease may still be renewed until someone sets DEAD.
    lease_expires_at INTEGER NOT NULL,
    -- When it became DEAD or GONE; the row is swept some time later.
    ended_at         INTEGER
) STRICT;
CREATE UNIQUE INDEX member_live_node_id ON member (node_id)
    WHERE state IN ('JOINING', 'ACTIVE', 'DRAINING');
CREATE INDEX member_state ON member (state);

-- One row for each session: the claim on it is the truth about its owner.
CREATE TABLE session (
    id         BLOB PRIMARY KEY CHECK (length(id) = 16),
    principal  BLOB NOT NULL CHECK (length(principal) = 16),
    route      TEXT NOT NULL,
    key_label  TEXT NOT NULL,
    owner      INTEGER,
    -- Fencing number of the present ownership; every change of the row is conditional on it.
    epoch      INTEGER NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('LIVE', 'QUIESCING', 'CLOSED')),
    -- The owner just before the present one, if there was another.
    taken_from INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    CHECK ((owner IS NULL) = (state = 'CLOSED'))
) STRICT, WITHOUT ROWID;
CREATE INDEX session_owner ON session (owner, id) WHERE owner IS NOT NULL;
CREATE INDEX session_key_label ON session (key_label, id);
CREATE INDEX session_closed ON session (updated_at) WHERE state = 'CLOSED';

-- Other names of a session, each valid within one principal.
CREATE TABLE alias (
    principal  BLOB NOT NULL CHECK (length(principal) = 16),
    kind       TEXT NOT NULL CHECK (kind IN ('response', 'turn_state')),
    digest     BLOB NOT NULL CHECK (length(digest) = 16),
    session    BLOB NOT NULL CHECK (length(session) = 16),
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (principal, kind, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX alias_updated_at ON alias (updated_at);
