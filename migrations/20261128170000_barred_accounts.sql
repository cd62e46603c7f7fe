-- What Forgejo says no to for now, and to whom a token may be shown.

-- Since when Forgejo does not let the account in (locked, must change its password), while it may do so again.
ALTER TABLE upstream_credentials ADD COLUMN barred_since BIGINT;
-- The client id of the application at Forgejo that the tokens are of: no other is ever shown them. None for personal
-- tokens, and until the first start with this column, which notes the application of then.
ALTER TABLE upstream_credentials ADD COLUMN application TEXT;
