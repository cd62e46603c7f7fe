-- Refresh tokens as real clients use them: several programs share one, and answers are lost.

-- The token that was exchanged for this one, or for this access token; none for those that a code was redeemed for.
ALTER TABLE refresh_tokens ADD COLUMN parent_hash BLOB;
ALTER TABLE access_tokens ADD COLUMN parent_hash BLOB;
-- When something that was given for the token was used for the first time. A used token without it is one whose answer
-- was lost. Of tokens that were used before this column was here nobody knows it.
ALTER TABLE refresh_tokens ADD COLUMN succeeded_at BIGINT;
UPDATE refresh_tokens SET succeeded_at = used_at;
-- A token that was used twice begins a branch of its family; the first branch is 0.
ALTER TABLE refresh_tokens ADD COLUMN branch BIGINT NOT NULL DEFAULT 0;
-- The branch that was the first to refresh after the last fork's window.
ALTER TABLE grants ADD COLUMN settled_branch BIGINT;

CREATE TABLE refresh_forks (
    grant_id  TEXT   NOT NULL REFERENCES grants (id),
    branch    BIGINT NOT NULL, -- that it began
    forked_at BIGINT NOT NULL,
    network   TEXT   NOT NULL, -- where from: /24 or /48
    PRIMARY KEY (grant_id, branch)
);
