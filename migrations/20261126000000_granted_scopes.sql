-- What Forgejo holds a user to, as it said at their last login: it may differ from what the operator configured,
-- because Forgejo keeps to the scopes of the first login. Shown to the user.
ALTER TABLE upstream_credentials ADD COLUMN granted_scopes TEXT;
