-- Conversations of routes with continuity = "database", sealed by the nodes.

CREATE TABLE conversation (
    session    BYTEA NOT NULL CHECK (octet_length(session) = 16),
    epoch      BIGINT NOT NULL,
    part_no    BIGINT NOT NULL,
    sealed     BYTEA NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (session, epoch, part_no)
);
-- What is sealed does not compress: do not try.
ALTER TABLE conversation ALTER COLUMN sealed SET STORAGE EXTERNAL;
CREATE INDEX conversation_updated_at ON conversation (updated_at);
COMMENT ON TABLE conversation IS 'Parts of what sessions have said, in order of epoch and number. A part is a fact; later ones replace earlier ones as a whole.';
COMMENT ON COLUMN conversation.session IS 'session.id. No foreign key: its lock would write to the session''s row at each turn.';
COMMENT ON COLUMN conversation.epoch IS 'Epoch of the owner that wrote it; orders the parts of several owners.';
COMMENT ON COLUMN conversation.part_no IS 'Counts the parts of one owner.';
COMMENT ON COLUMN conversation.sealed IS 'Version (1 byte), key id (4), nonce (12), AES-256-GCM ciphertext and tag. Only nodes with the key read it.';
