-- From which network (IPv4 /24, IPv6 /48) a login under way began and an unused client registered, so that each network has
-- its share of them. Those of before are one network together.
ALTER TABLE logins ADD COLUMN network TEXT NOT NULL DEFAULT '';
ALTER TABLE registered_clients ADD COLUMN network TEXT NOT NULL DEFAULT '';
CREATE INDEX logins_by_network ON logins (network, created_at);
CREATE INDEX registrations_unused_by_network ON registered_clients (network, created_at) WHERE logged_in_at IS NULL;

-- Who has a login is looked up with each login at Forgejo, in whatever case.
CREATE INDEX users_by_login_in_any_case ON users (LOWER(login));
