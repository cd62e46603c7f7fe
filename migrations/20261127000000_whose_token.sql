-- Whose tokens these are, and which forge they are of.

-- When Forgejo made the account, in its own words: the number and this time tell an account from one that was given the
-- same number later, as after a reset of the forge. None until Forgejo was asked.
ALTER TABLE users ADD COLUMN account_created_at BIGINT;
-- SHA-256 of the access token that Forgejo last said is this user's, and when it said so. A token that is another one
-- than this is handed to nobody.
ALTER TABLE upstream_credentials ADD COLUMN checked_token BLOB;
ALTER TABLE upstream_credentials ADD COLUMN checked_at BIGINT;
CREATE INDEX credentials_by_check ON upstream_credentials (checked_at);
CREATE INDEX credentials_by_key ON upstream_credentials (key_id);

-- The forge that all of this belongs to; one row.
CREATE TABLE forge (
    id           BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    url          TEXT   NOT NULL, -- as the configuration named it
    signing_keys TEXT,            -- SHA-256 of the public keys that it signs tokens with; none while it has not told
    noted_at     BIGINT NOT NULL
);

-- Lists are read page by page, the newest first.
CREATE INDEX grants_by_age ON grants (created_at, id);
CREATE INDEX grants_of_a_user_by_age ON grants (tenant, created_at, id);
CREATE INDEX users_by_login ON users (login, tenant);
