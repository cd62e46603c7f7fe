//! The configuration of everything that has to do with logging in.

use std::fs;
use std::time::Duration;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::seconds;
use crate::config_file::Section;
use crate::frontend::access::{Access, Subject};
use crate::frontend::limiter::Rates;
use crate::frontend::oauth::client::{Client, Origin};
use crate::frontend::oauth::policy::{Documents, Fetch, Policy};
use crate::frontend::oauth::redirect::{RedirectUri, Schemes};
use crate::frontend::token::TokenHash;
use crate::frontend::tools::{Table, Tables};

/// Schemes of programs that are known to register one (facts about clients change; the operator's list replaces it).
const SCHEMES: [&str; 6] = ["cursor", "vscode", "vscode-insiders", "claude", "windsurf", "zed"];
/// Forgejo's scopes that the tools of today need. Never none: Forgejo takes that for all.
const SCOPES: [&str; 6] =
    ["write:user", "write:repository", "write:issue", "write:organization", "write:notification", "write:package"];
/// Forgejo's groups of rights; `all` and `admin` are left out on purpose.
const GROUPS: [&str; 8] =
    ["activitypub", "misc", "notification", "organization", "package", "issue", "repository", "user"];

/// `[oauth]` and what is below it.
pub(super) fn policy(mut section: Section) -> Policy {
    let hour = 3600;
    let access_ttl = section.duration("access_token_ttl", Duration::from_hours(1), seconds(1, 24 * hour));
    let refresh_ttl =
        section.duration("refresh_token_ttl", Duration::from_hours(30 * 24), seconds(60, 366 * 24 * hour));
    let visit_ttl = section.duration("login_ttl", Duration::from_hours(12), seconds(60, 30 * 24 * hour));
    let keep_unused =
        section.duration("keep_unused_clients", Duration::from_hours(7 * 24), seconds(hour, 366 * 24 * hour));
    let schemes = section.texts("redirect_schemes", &SCHEMES);
    for never in schemes.iter().filter(|scheme| Schemes::is_never(scheme)) {
        section.complain("redirect_schemes", format!("`{never}` is no program's own scheme"));
    }
    let schemes = Schemes::new(schemes);
    let clients = clients(&mut section, &schemes);
    let documents = documents(section.section("documents"));
    section.close();
    Policy { access_ttl, refresh_ttl, visit_ttl, keep_unused, schemes, clients, documents }
}

/// `[oauth.clients.ID]`: clients that the operator vouches for.
fn clients(section: &mut Section, schemes: &Schemes) -> Vec<Client> {
    let mut all = section.section("clients");
    let mut clients = Vec::new();
    for id in all.keys() {
        let mut one = all.section(&id);
        let name = one.parsed::<String>("name").unwrap_or_else(|| id.clone());
        let mut redirects = Vec::new();
        for text in one.texts("redirect_uris", &[]) {
            match RedirectUri::parse(&text, schemes) {
                Ok(redirect) => redirects.push(redirect),
                Err(e) => one.complain("redirect_uris", format!("`{text}`: {e}")),
            }
        }
        if redirects.is_empty() {
            one.complain("redirect_uris", "must name at least one address");
        }
        let secret = one.optional_path("secret_file").and_then(|file| {
            let text = fs::read_to_string(&file).map(Zeroizing::new).map_err(|e| e.to_string());
            let good = text.and_then(|text| match text.trim() {
                secret if (32..=200).contains(&secret.len()) && secret.bytes().all(is_unreserved) => {
                    Ok(TokenHash(Sha256::digest(secret.as_bytes()).into()))
                }
                _ => Err("must hold 32 to 200 characters of A-Z a-z 0-9 - . _ ~".to_owned()),
            });
            good.map_err(|what| one.complain("secret_file", format!("{}: {what}", file.display()))).ok()
        });
        if id.starts_with("https://") {
            one.complain("name", "an id that begins with https:// is that of a metadata document");
        }
        one.close();
        clients.push(Client { id, name, redirects, secret, origin: Origin::Configured });
    }
    all.close();
    clients
}

/// Characters that no form encoding changes: some clients forget to encode (RFC 3986 section 2.3).
fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

/// `[oauth.documents]`: client ID metadata documents.
fn documents(mut section: Section) -> Documents {
    let fetch = section.value("fetch", |value| match value.as_str() {
        Some("on") => Ok(Fetch::On),
        Some("allowlist") => Ok(Fetch::Allowlist),
        Some("off") => Ok(Fetch::Off),
        _ => Err("must be \"on\", \"allowlist\" or \"off\"".to_owned()),
    });
    let documents = Documents {
        fetch: fetch.unwrap_or_default(),
        hosts: section.texts("hosts", &[]),
        private_hosts: section.texts("private_hosts", &[]),
        ca_file: section.optional_path("ca_file"),
    };
    if documents.fetch == Fetch::Allowlist && documents.hosts.is_empty() {
        section.complain("hosts", "must name the hosts, because fetch is \"allowlist\"");
    }
    if let Some(file) = &documents.ca_file
        && let Err(e) = fs::read(file)
    {
        section.complain("ca_file", format!("{}: {e}", file.display()));
    }
    section.close();
    documents
}

/// `[access]`: who may log in.
pub(super) fn access(mut section: Section) -> Access {
    let subjects = |section: &mut Section, key: &str| -> Vec<Subject> {
        let mut subjects = Vec::new();
        for text in section.texts(key, &[]) {
            match text.parse() {
                Ok(subject) => subjects.push(subject),
                Err(what) => section.complain(key, what),
            }
        }
        subjects
    };
    let access = Access {
        allow: subjects(&mut section, "allow"),
        deny: subjects(&mut section, "deny"),
        restricted: section.flag("restricted", false),
    };
    section.close();
    access
}

/// `[forgejo] scopes`: what is asked of Forgejo.
pub(super) fn scopes(forgejo: &mut Section, access: &Access) -> Vec<String> {
    let scopes = forgejo.texts("scopes", &SCOPES);
    let known = |scope: &String| {
        scope
            .split_once(':')
            .is_some_and(|(right, group)| ["read", "write"].contains(&right) && GROUPS.contains(&group))
    };
    let has = |group: &str| scopes.iter().any(|scope| scope.split_once(':').is_some_and(|(_, g)| g == group));
    if let Some(wrong) = scopes.iter().find(|scope| !known(scope)) {
        forgejo.complain("scopes", format!("`{wrong}` is no scope of Forgejo's such as read:user or write:issue"));
    }
    if !has("user") {
        forgejo.complain("scopes", "must hold read:user or write:user: without it nobody can be recognised");
    }
    if access.asks_for_memberships() && !has("organization") {
        forgejo.complain("scopes", "must hold read:organization, because [access] names organisations or teams");
    }
    scopes
}

/// `[rates]`: requests a minute from one address.
pub(super) fn rates(mut section: Section) -> Rates {
    let mut rate = |key: &str, default: u32| section.integer(key, default, 1..=1_000_000);
    let rates = Rates {
        registrations: rate("registrations", 20),
        logins: rate("logins", 30),
        documents: rate("documents", 30),
        failures: rate("failures", 60),
    };
    section.close();
    rates
}

/// `[http] trusted_proxies`: addresses or networks whose `X-Forwarded-For` is believed.
pub(super) fn proxies(http: &mut Section) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for text in http.texts("trusted_proxies", &["127.0.0.0/8", "::1/128"]) {
        let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
        match address.or_else(|_| text.parse::<IpNet>()) {
            Ok(network) => networks.push(network),
            Err(_) => http.complain("trusted_proxies", format!("`{text}` is neither an address nor a network")),
        }
    }
    networks
}

/// `[tools]`: which of them write.
pub(super) fn tools(mut section: Section) -> Tables {
    let mut tables = Vec::new();
    for file in section.texts("tables", &[]) {
        let table = fs::read_to_string(&file).map_err(|e| e.to_string()).and_then(|text| Table::parse(&text));
        match table {
            Ok(table) => tables.push(table),
            Err(what) => section.complain("tables", format!("{file}: {what}")),
        }
    }
    let tables = Tables::new(tables, section.flag("correct_hints", true));
    section.close();
    tables
}
