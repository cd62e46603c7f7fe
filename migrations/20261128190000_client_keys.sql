-- Clients that show at the token endpoint that they have their key (private_key_jwt).

-- 1: the code is good only for whoever shows the client's key: its document said so when it was asked for.
ALTER TABLE authorization_codes ADD COLUMN needs_key BIGINT NOT NULL DEFAULT 0;

-- 1: so are the refresh tokens, because the code was, or because the key was shown with it. A grant from before goes on
-- without: its client may not have signed when nothing asked it to.
ALTER TABLE grants ADD COLUMN needs_key BIGINT NOT NULL DEFAULT 0;
