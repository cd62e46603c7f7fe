-- What a user is shown of each connection, and may do with it.

-- Where it was last used from: /24 or /48, never an address. None until it was used.
ALTER TABLE grants ADD COLUMN network TEXT;
-- When its user was shown it for the first time. What was there before this column was is nothing new.
ALTER TABLE grants ADD COLUMN seen_at BIGINT;
UPDATE grants SET seen_at = created_at;
-- When its user took writing away from it; its client may go on asking for what it was given at first.
ALTER TABLE grants ADD COLUMN reduced_at BIGINT;

-- The last calls that may have changed something, a few a grant; none where the audit is off.
CREATE TABLE grant_writes (
    grant_id  TEXT   NOT NULL REFERENCES grants (id),
    number    BIGINT NOT NULL, -- one more than the call before it
    called_at BIGINT NOT NULL,
    tool      TEXT   NOT NULL,
    target    TEXT   NOT NULL, -- the repository, or what else was named; empty where nothing was
    outcome   TEXT   NOT NULL,
    PRIMARY KEY (grant_id, number)
);
