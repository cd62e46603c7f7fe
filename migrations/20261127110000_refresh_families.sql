-- A refresh token names its family, so that a used one is recognised without a row of its own.

-- SHA-256 of what all refresh tokens of the grant share; none for grants that the operator made, and for those whose
-- client has not refreshed since this column is here.
ALTER TABLE grants ADD COLUMN family_hash BLOB;
CREATE UNIQUE INDEX grants_by_family ON grants (family_hash) WHERE family_hash IS NOT NULL;

-- 1: the token names its family, so its row goes some minutes after it was used. Others stay until they have expired.
ALTER TABLE refresh_tokens ADD COLUMN in_family BIGINT NOT NULL DEFAULT 0;
