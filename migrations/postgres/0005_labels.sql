-- Sessions whose clients named no key have an empty label. Each claim and each release wrote it
-- into the index, where all of them share one bucket of a hash: with a million such rows an
-- insertion reads through thousands of pages.
-- The last step needs the table for itself. Where somebody reads it for long, that is found out
-- before the index is built, not after it each time.
SAVEPOINT free;
LOCK TABLE session IN ACCESS EXCLUSIVE MODE;
ROLLBACK TO SAVEPOINT free;

-- A hash index, because a key may be longer than a B-tree entry.
CREATE INDEX session_label ON session USING hash (key_label) WHERE key_label <> '';
-- Last: nobody can use the table meanwhile, not even to read.
DROP INDEX session_key_label;
