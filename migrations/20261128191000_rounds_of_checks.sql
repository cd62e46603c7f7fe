-- A start changes nothing of every user's, and reads nothing of everybody that is the same every time.

-- A start, and lists that are read anew, have everybody looked at again. That is one number: what Forgejo said of a token
-- counts as of the round that it was said in. Of what was noted before this column was here, nothing does.
ALTER TABLE upstream_credentials ADD COLUMN checked_round BIGINT NOT NULL DEFAULT 0;
CREATE TABLE check_rounds (
    id    BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    round BIGINT NOT NULL
);
INSERT INTO check_rounds (id, round) VALUES (1, 1);
DROP INDEX credentials_by_check;
CREATE INDEX credentials_by_check ON upstream_credentials (checked_round, checked_at);

-- Tokens of no known application, and those of another one, are found without a look at all the others.
CREATE INDEX credentials_by_application ON upstream_credentials (application) WHERE kind = 'oauth';
