-- SHA-256 of the browser's key: a login ends what was there of the same browser, and so does logging out.
ALTER TABLE visits ADD COLUMN browser_hash BLOB;
CREATE INDEX visits_of_a_browser ON visits (browser_hash) WHERE browser_hash IS NOT NULL;
