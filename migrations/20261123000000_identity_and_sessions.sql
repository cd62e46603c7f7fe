-- Who may come in, on whose behalf, and which sessions are open.
-- Times are whole seconds since 1970 (UTC). No column holds a secret in the clear: tokens and session ids are kept
-- as SHA-256, upstream tokens sealed (XChaCha20-Poly1305). Written in what SQLite and PostgreSQL both understand.

CREATE TABLE users (
    tenant     BIGINT NOT NULL PRIMARY KEY, -- Forgejo's id of the user; logins change, ids do not
    login      TEXT   NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE clients (
    client_id  TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);

-- One of kind 'oauth' a user, because Forgejo counts refreshes by user and application; one of kind 'pat' for each
-- `token create`.
CREATE TABLE upstream_credentials (
    id                TEXT   NOT NULL PRIMARY KEY,
    tenant            BIGINT NOT NULL REFERENCES users (tenant),
    kind              TEXT   NOT NULL CHECK (kind IN ('pat', 'oauth')),
    key_id            TEXT   NOT NULL,
    access_sealed     BLOB   NOT NULL, -- nonce, then ciphertext
    refresh_sealed    BLOB,
    access_expires_at BIGINT,          -- unknown for personal tokens
    updated_at        BIGINT NOT NULL
);
CREATE UNIQUE INDEX one_oauth_credential_a_user ON upstream_credentials (tenant) WHERE kind = 'oauth';

-- A token family: what one user gave one client.
CREATE TABLE grants (
    id             TEXT   NOT NULL PRIMARY KEY,
    client_id      TEXT   NOT NULL REFERENCES clients (client_id),
    tenant         BIGINT NOT NULL REFERENCES users (tenant),
    credential_id  TEXT   NOT NULL REFERENCES upstream_credentials (id),
    scopes         TEXT   NOT NULL,
    created_at     BIGINT NOT NULL,
    last_used_at   BIGINT,
    revoked_at     BIGINT,
    revoked_reason TEXT
);
CREATE INDEX grants_of_a_user ON grants (tenant);

CREATE TABLE access_tokens (
    token_hash BLOB   NOT NULL PRIMARY KEY,
    grant_id   TEXT   NOT NULL REFERENCES grants (id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX tokens_of_a_grant ON access_tokens (grant_id);

CREATE TABLE sessions (
    session_hash     BLOB   NOT NULL PRIMARY KEY,
    grant_id         TEXT   NOT NULL REFERENCES grants (id),
    tenant           BIGINT NOT NULL,
    protocol_version TEXT   NOT NULL,
    initialize       TEXT   NOT NULL, -- the client's parameters, replayed to every child
    answer           TEXT   NOT NULL, -- the first child's result, compared with those of later ones
    created_at       BIGINT NOT NULL,
    last_used_at     BIGINT NOT NULL,
    ended_at         BIGINT,
    end_reason       TEXT
);
CREATE INDEX sessions_of_a_grant ON sessions (grant_id);
CREATE INDEX live_sessions ON sessions (last_used_at) WHERE ended_at IS NULL;
