-- What principals use across the ring, for those that have limits.

-- To count the sessions of one principal; a row's principal and owner are set at a claim.
CREATE INDEX session_principal ON session (principal, owner) WHERE owner IS NOT NULL;

-- How many turns of a principal a node may be running.
CREATE TABLE turn_share (
    principal   BLOB NOT NULL CHECK (length(principal) = 16),
    -- member.incarnation; of a dead one the row counts for nothing, and is swept.
    incarnation INTEGER NOT NULL,
    turns       INTEGER NOT NULL,
    PRIMARY KEY (principal, incarnation)
) STRICT, WITHOUT ROWID;

-- The pace at which a principal begins turns (generic cell rate).
CREATE TABLE turn_pace (
    principal BLOB PRIMARY KEY CHECK (length(principal) = 16),
    -- When the next turn would be due without any burst, in microseconds of the boot clock.
    next_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX turn_pace_next_at ON turn_pace (next_at);
