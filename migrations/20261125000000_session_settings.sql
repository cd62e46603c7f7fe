-- What a client has told its child beyond the handshake (log level, watched resources), as JSON; told to the child's
-- successors, also after a restart of the broker.
ALTER TABLE sessions ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
