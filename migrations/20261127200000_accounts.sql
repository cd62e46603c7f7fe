-- Whose is it? What tells an account from its successor, when a credential was last seen to be its user's, and which
-- forge all of this is about.
ALTER TABLE users ADD COLUMN account_created BIGINT;            -- none: not seen yet
ALTER TABLE upstream_credentials ADD COLUMN checked_at BIGINT;  -- none: not used before Forgejo has said whose it is

CREATE TABLE forge (
    one        INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    url        TEXT    NOT NULL,
    adopted_at BIGINT  NOT NULL
);
