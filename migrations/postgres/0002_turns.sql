-- The ledger of turns: what was sent to an upstream, written before its first byte goes out.

CREATE TABLE turn (
    session    BYTEA NOT NULL CHECK (octet_length(session) = 16),
    epoch      BIGINT NOT NULL,
    turn_no    BIGINT NOT NULL,
    state      TEXT NOT NULL DEFAULT 'DISPATCHED'
               CHECK (state IN ('DISPATCHED', 'VISIBLE', 'DONE', 'FAILED', 'UNKNOWN')),
    idem_key   BYTEA CHECK (octet_length(idem_key) = 16),
    request    BYTEA NOT NULL CHECK (octet_length(request) = 16),
    response   TEXT CHECK (octet_length(response) <= 256),
    dispatches SMALLINT NOT NULL DEFAULT 1,
    begun_at   TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (session, epoch, turn_no)
) WITH (fillfactor = 70);
-- A turn is inserted once and updated once or twice soon after. No index holds what those
-- updates change, and each page keeps room for them, so they stay HOT.
CREATE UNIQUE INDEX turn_idem_key ON turn (session, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX turn_begun_at ON turn (begun_at);
COMMENT ON TABLE turn IS 'One row for each turn that was, or was about to be, sent to an upstream. A turn that only waits has none: losing it loses nothing.';
COMMENT ON COLUMN turn.session IS 'session.id. No foreign key: begin_turns checks and locks the session''s row itself.';
COMMENT ON COLUMN turn.epoch IS 'Ownership under which it was last dispatched; its marks are conditional on it.';
COMMENT ON COLUMN turn.turn_no IS 'Counts within session and epoch.';
COMMENT ON COLUMN turn.state IS 'DISPATCHED: the upstream may have it. VISIBLE: it named a response. DONE, FAILED, UNKNOWN are final.';
COMMENT ON COLUMN turn.idem_key IS 'First 16 bytes of the SHA-256 of the client''s idempotency key; the key itself is not kept.';
COMMENT ON COLUMN turn.request IS 'Fingerprint of the request, to tell a repeat from another request under the same key.';
COMMENT ON COLUMN turn.response IS 'The upstream''s id of the response, once it named one.';
COMMENT ON COLUMN turn.dispatches IS 'How often it was sent: more than once only by the rule for turns that store nothing.';
COMMENT ON COLUMN turn.begun_at IS 'When it was first dispatched; the row is swept some time later.';
COMMENT ON COLUMN turn.updated_at IS 'Last change of the state.';

-- In triggers and not in the statements of a claim, so that a node of the previous release,
-- which knows no turns, keeps these promises too. A trigger's statement has a snapshot of its
-- own: it sees what was begun while the change of the session's row waited for its lock.
CREATE FUNCTION ringspan_session_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE turn SET state = 'UNKNOWN', updated_at = NEW.updated_at
     WHERE session = NEW.id AND state IN ('DISPATCHED', 'VISIBLE');
    RETURN NULL;
END $$;
COMMENT ON FUNCTION ringspan_session_moved IS 'Nobody will hear how the turns of an earlier epoch end.';
CREATE TRIGGER session_moved AFTER UPDATE OF epoch ON session FOR EACH ROW
    WHEN (OLD.epoch IS DISTINCT FROM NEW.epoch) EXECUTE FUNCTION ringspan_session_moved();

CREATE FUNCTION ringspan_session_swept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM turn WHERE session = OLD.id;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION ringspan_session_swept IS 'A session''s turns go with its row.';
CREATE TRIGGER session_swept AFTER DELETE ON session FOR EACH ROW
    EXECUTE FUNCTION ringspan_session_swept();
