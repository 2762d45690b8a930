-- Sessions whose clients named no key have an empty label, which nobody looks for.
DROP INDEX session_key_label;
CREATE INDEX session_key_label ON session (key_label, id) WHERE key_label <> '';
