-- What principals use across the ring, for those that have limits.

-- To count the sessions of one principal; a row's principal and owner are set at a claim.
CREATE INDEX session_principal ON session (principal, owner) WHERE owner IS NOT NULL;

CREATE TABLE turn_share (
    principal   BYTEA NOT NULL CHECK (octet_length(principal) = 16),
    incarnation BIGINT NOT NULL,
    turns       BIGINT NOT NULL,
    PRIMARY KEY (principal, incarnation)
) WITH (fillfactor = 70);
COMMENT ON TABLE turn_share IS 'How many turns of a principal a node may be running. Changed under the principal''s advisory lock.';
COMMENT ON COLUMN turn_share.incarnation IS 'member.incarnation; of a dead one the row counts for nothing, and is swept.';

CREATE TABLE turn_pace (
    principal BYTEA PRIMARY KEY CHECK (octet_length(principal) = 16),
    next_at   TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX turn_pace_next_at ON turn_pace (next_at);
COMMENT ON TABLE turn_pace IS 'The pace at which a principal begins turns (generic cell rate). Changed under the principal''s advisory lock.';
COMMENT ON COLUMN turn_pace.next_at IS 'When the next turn would be due without any burst; one that is long past is swept.';
