-- Log in with Forgejo: who asks (clients), what is under way (logins, codes), what came of it (refresh tokens,
-- consents, visits). Every secret is here as its SHA-256 only.

-- Registered by RFC 7591. Clients from configuration and from metadata documents are not here.
CREATE TABLE registered_clients (
    client_id     TEXT   NOT NULL PRIMARY KEY,
    name          TEXT   NOT NULL,
    redirects     TEXT   NOT NULL, -- JSON list of addresses
    secret_hash   BLOB,            -- none for public clients
    metadata_hash BLOB   NOT NULL, -- two public registrations that are alike get one client
    created_at    BIGINT NOT NULL,
    logged_in_at  BIGINT           -- the first login that was completed; from then on it is kept for ever
);
CREATE INDEX registrations_alike ON registered_clients (metadata_hash);
CREATE INDEX registrations_unused ON registered_clients (created_at) WHERE logged_in_at IS NULL;

-- A login at Forgejo under way; single-use, ten minutes.
CREATE TABLE logins (
    state_hash   BLOB   NOT NULL PRIMARY KEY,
    browser_hash BLOB   NOT NULL, -- only this browser may bring the answer
    request      TEXT,            -- the client's authorization request; none for the account page
    consented    TEXT,            -- the scopes that the person agreed to, or none: what was remembered decides
    created_at   BIGINT NOT NULL
);
CREATE INDEX logins_by_age ON logins (created_at);

CREATE TABLE authorization_codes (
    code_hash     BLOB   NOT NULL PRIMARY KEY,
    client_id     TEXT   NOT NULL,
    client_name   TEXT   NOT NULL,
    redirect_uri  TEXT   NOT NULL,
    challenge     TEXT   NOT NULL, -- S256
    tenant        BIGINT NOT NULL REFERENCES users (tenant),
    credential_id TEXT   NOT NULL REFERENCES upstream_credentials (id),
    scopes        TEXT   NOT NULL,
    created_at    BIGINT NOT NULL,
    grant_id      TEXT             -- set when it is redeemed; who redeems it again ends this grant
);
CREATE INDEX codes_by_age ON authorization_codes (created_at);

CREATE TABLE refresh_tokens (
    token_hash BLOB   NOT NULL PRIMARY KEY,
    grant_id   TEXT   NOT NULL REFERENCES grants (id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at    BIGINT              -- the first exchange; kept until it would have expired, to notice a thief
);
CREATE INDEX refresh_tokens_of_a_grant ON refresh_tokens (grant_id);
CREATE INDEX refresh_tokens_by_end ON refresh_tokens (expires_at);

-- What a person agreed to: this client, this place to send the code to, these scopes.
CREATE TABLE consents (
    tenant      BIGINT NOT NULL REFERENCES users (tenant),
    client_id   TEXT   NOT NULL,
    redirect    TEXT   NOT NULL, -- without the port where it is on this machine
    client_name TEXT   NOT NULL,
    scopes      TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant, client_id, redirect)
);

-- Somebody who is logged in at the broker's own pages.
CREATE TABLE visits (
    visit_hash BLOB   NOT NULL PRIMARY KEY,
    tenant     BIGINT NOT NULL REFERENCES users (tenant),
    expires_at BIGINT NOT NULL
);
CREATE INDEX visits_by_end ON visits (expires_at);

CREATE INDEX access_tokens_by_end ON access_tokens (expires_at);
-- A refresh may ask for less than the grant allows (RFC 6749 section 6); none: all of it.
ALTER TABLE access_tokens ADD COLUMN scopes TEXT;
