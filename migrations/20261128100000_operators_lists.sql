-- The operator's lists of sessions and clients are read page by page, in the order of an index.
CREATE INDEX live_sessions_by_age ON sessions (created_at, session_hash) WHERE ended_at IS NULL;
-- How many connections a client has.
CREATE INDEX grants_of_a_client ON grants (client_id) WHERE revoked_at IS NULL;
