-- Conversations of routes with continuity = "database", sealed by the nodes.

-- Parts of what sessions have said, in order of epoch and number. A part is a fact; later
-- ones replace earlier ones as a whole.
CREATE TABLE conversation (
    session    BLOB NOT NULL CHECK (length(session) = 16),
    -- Epoch of the owner that wrote it; orders the parts of several owners.
    epoch      INTEGER NOT NULL,
    -- Counts the parts of one owner.
    part_no    INTEGER NOT NULL,
    -- Version (1 byte), key id (4), nonce (12), AES-256-GCM ciphertext and tag.
    sealed     BLOB NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (session, epoch, part_no)
) STRICT;
CREATE INDEX conversation_updated_at ON conversation (updated_at);
