-- The ledger of turns: what was sent to an upstream, written before its first byte goes out.

-- One row for each turn that was, or was about to be, sent to an upstream. A turn that only
-- waits has none: losing it loses nothing.
CREATE TABLE turn (
    session    BLOB NOT NULL CHECK (length(session) = 16),
    -- Ownership under which it was last dispatched; its marks are conditional on it.
    epoch      INTEGER NOT NULL,
    -- Counts within session and epoch.
    turn_no    INTEGER NOT NULL,
    -- DISPATCHED: the upstream may have it. VISIBLE: it named a response. The rest is final.
    state      TEXT NOT NULL DEFAULT 'DISPATCHED'
               CHECK (state IN ('DISPATCHED', 'VISIBLE', 'DONE', 'FAILED', 'UNKNOWN')),
    -- First 16 bytes of the SHA-256 of the client's idempotency key; the key is not kept.
    idem_key   BLOB CHECK (length(idem_key) = 16),
    -- Fingerprint of the request, to tell a repeat from another request under the same key.
    request    BLOB NOT NULL CHECK (length(request) = 16),
    -- The upstream's id of the response, once it named one.
    response   TEXT CHECK (length(CAST(response AS BLOB)) <= 256),
    -- How often it was sent: more than once only by the rule for turns that store nothing.
    dispatches INTEGER NOT NULL DEFAULT 1,
    begun_at   INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (session, epoch, turn_no)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX turn_idem_key ON turn (session, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX turn_begun_at ON turn (begun_at);

-- Nobody will hear how the turns of an earlier epoch end. In a trigger, so that a node of the
-- previous release, which knows no turns, keeps this promise too.
CREATE TRIGGER session_moved AFTER UPDATE OF epoch ON session WHEN OLD.epoch <> NEW.epoch
BEGIN
    UPDATE turn SET state = 'UNKNOWN', updated_at = NEW.updated_at
     WHERE session = NEW.id AND state IN ('DISPATCHED', 'VISIBLE');
END;

-- A session's turns go with its row.
CREATE TRIGGER session_swept AFTER DELETE ON session
BEGIN
    DELETE FROM turn WHERE session = OLD.id;
END;
