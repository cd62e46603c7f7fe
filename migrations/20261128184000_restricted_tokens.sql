-- What a token of the operator's is held to besides its scopes, with spaces in between; none: to nothing.

-- The only tools that it shows and calls.
ALTER TABLE grants ADD COLUMN tools TEXT;
-- The only networks (CIDR) that it may come from.
ALTER TABLE grants ADD COLUMN networks TEXT;
