-- Logins that the operator's lists name, and whose they were when they were first looked up: logins change hands, and an
-- entry that was written for one account must not come to mean another. `account_created_at` tells the account from one that
-- was given its number later. A row goes when no list names the login any more.
CREATE TABLE list_names (
    login TEXT PRIMARY KEY,
    tenant INTEGER NOT NULL,
    account_created_at INTEGER NOT NULL,
    pinned_at INTEGER NOT NULL
);
