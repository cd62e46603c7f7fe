-- Forgejo tokens that their users show with each request ([access] forgejo_tokens).

-- 1: the grants on it are such tokens; nothing of the token is kept, so that access_sealed is empty.
ALTER TABLE upstream_credentials ADD COLUMN is_shown BIGINT NOT NULL DEFAULT 0;
CREATE INDEX shown_credentials ON upstream_credentials (id) WHERE is_shown = 1;
