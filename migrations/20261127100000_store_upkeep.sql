-- What keeps the database small and its upkeep cheap.

-- Written to by who asks whether the database can be written; one row.
CREATE TABLE probe (
    id     BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    writes BIGINT NOT NULL
);
INSERT INTO probe (id, writes) VALUES (1, 0);

-- What is over is found without a look at what is not.
CREATE INDEX grants_of_a_credential ON grants (credential_id);
CREATE INDEX grants_by_revocation ON grants (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX ended_sessions ON sessions (ended_at) WHERE ended_at IS NOT NULL;
DROP INDEX refresh_tokens_of_a_grant;
CREATE INDEX refresh_tokens_of_a_grant ON refresh_tokens (grant_id, expires_at);

-- Ended sessions keep who, when and why; what their children were told goes with their end.
UPDATE sessions SET initialize = '', answer = '', settings = '{}' WHERE ended_at IS NOT NULL;
