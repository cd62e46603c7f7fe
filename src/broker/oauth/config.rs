//! What the operator decides about logging in: `[oauth]` and what is below it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::auth::token::TokenHash;
use crate::oauth::client::{Client, Origin, Proof, has_document};
use crate::oauth::client_name::ClientName;
use crate::oauth::families::ReusePolicy;
use crate::oauth::redirect::{RedirectUri, Schemes};
use sha2::{Digest, Sha256};
use wire::config_file::{NamedFile, Section, seconds};
use zeroize::Zeroizing;

/// Schemes of programs that are known to register one (facts about clients change; the operator's list replaces it).
const SCHEMES: [&str; 6] = ["cursor", "vscode", "vscode-insiders", "claude", "windsurf", "zed"];

/// `[oauth]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OAuthConfig {
    /// How long an access token lives.
    pub(crate) access_ttl: Duration,
    /// How long a refresh token lives; each exchange gives one that lives as long again.
    pub(crate) refresh_ttl: Duration,
    /// What becomes of a refresh token that comes back.
    pub(crate) reuse: ReusePolicy,
    /// How long somebody stays logged in at the broker's own pages.
    pub(crate) visit_ttl: Duration,
    /// How long a client that registered and never completed a login is kept.
    pub(crate) keep_unused: Duration,
    /// Whether the first challenge names no error.
    pub(crate) bare_challenge: bool,
    /// Private-use schemes that a redirect address may have.
    pub(crate) schemes: Schemes,
    /// Clients that the operator vouches for.
    pub(crate) clients: Vec<Client>,
    /// Client ID metadata documents.
    pub(crate) documents: DocumentConfig,
    /// What strangers may leave behind. No key of the operator's.
    pub(crate) bounds: Bounds,
}

/// How much strangers may leave behind, of everybody; beyond it networks share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Logins under way.
    pub(crate) logins: i64,
    /// Clients that have never completed a login.
    pub(crate) unused_clients: i64,
}

impl Default for Bounds {
    fn default() -> Self {
        // Some ten megabytes each.
        Self { logins: 20_000, unused_clients: 10_000 }
    }
}

/// Whose metadata documents are fetched.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct DocumentConfig {
    /// Whether at all.
    pub(crate) fetch: Fetch,
    /// The hosts, where there is an allowlist.
    pub(crate) hosts: Vec<String>,
    /// Hosts that may have addresses of a private network.
    pub(crate) private_hosts: Vec<String>,
    /// A further certificate authority, as PEM.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Whether documents are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fetch {
    /// From any public host.
    #[default]
    On,
    /// From listed hosts.
    Allowlist,
    /// Not at all.
    Off,
}

impl OAuthConfig {
    /// `[oauth]` and what is below it.
    pub(crate) fn read(mut section: Section) -> Self {
        let hour = 3600;
        let refresh_ttl =
            section.duration("refresh_token_ttl", Duration::from_hours(30 * 24), seconds(60, 366 * 24 * hour));
        let access_ttl =
            section.duration("access_token_ttl", refresh_ttl.min(Duration::from_hours(1)), seconds(1, 24 * hour));
        if access_ttl > refresh_ttl {
            section.complain("access_token_ttl", "must not be above refresh_token_ttl: it would outlive its family");
        }
        let reuse = ReusePolicy {
            window: section.duration("refresh_reuse_window", Duration::from_mins(5), seconds(0, hour)),
            one_branch: section
                .value("refresh_forks", |value| match value.as_str() {
                    Some("keep") => Ok(false),
                    Some("end") => Ok(true),
                    _ => Err("must be \"keep\" or \"end\"".to_owned()),
                })
                .unwrap_or(false),
        };
        let visit_ttl = section.duration("login_ttl", Duration::from_hours(12), seconds(60, 30 * 24 * hour));
        let keep_unused =
            section.duration("keep_unused_clients", Duration::from_hours(7 * 24), seconds(hour, 366 * 24 * hour));
        let bare_challenge = section.flag("bare_challenge", false);
        let schemes = section.texts("redirect_schemes", &SCHEMES);
        for never in schemes.iter().filter(|scheme| Schemes::is_never(scheme)) {
            section.complain("redirect_schemes", format!("`{never}` is no program's own scheme"));
        }
        let schemes = Schemes::new(schemes);
        let clients = clients(&mut section, &schemes);
        let documents = DocumentConfig::read(section.section("documents"));
        section.close();
        Self {
            access_ttl,
            refresh_ttl,
            reuse,
            visit_ttl,
            keep_unused,
            bare_challenge,
            schemes,
            clients,
            documents,
            bounds: Bounds::default(),
        }
    }
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
        let secret = one.file("secret_file").and_then(NamedFile::path).and_then(|file| {
            let text = fs::read_to_string(&file).map(Zeroizing::new).map_err(|e| e.to_string());
            let good = text.and_then(|text| match text.trim() {
                secret if (32..=200).contains(&secret.len()) && secret.bytes().all(is_unreserved) => {
                    Ok(TokenHash(Sha256::digest(secret.as_bytes()).into()))
                }
                _ => Err("must hold 32 to 200 characters of A-Z a-z 0-9 - . _ ~".to_owned()),
            });
            good.map_err(|what| one.complain("secret_file", format!("{}: {what}", file.display()))).ok()
        });
        if has_document(&id) {
            one.complain("name", "an id that begins with https:// is that of a metadata document");
        }
        one.close();
        let proof = secret.map_or(Proof::None, Proof::Secret);
        clients.push(Client { id, name: ClientName::of(&name), redirects, proof, origin: Origin::Configured });
    }
    all.close();
    clients
}

/// Characters that no form encoding changes: some clients forget to encode (RFC 3986 section 2.3).
fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

impl DocumentConfig {
    /// `[oauth.documents]`: client ID metadata documents.
    fn read(mut section: Section) -> Self {
        let fetch = section.value("fetch", |value| match value.as_str() {
            Some("on") => Ok(Fetch::On),
            Some("allowlist") => Ok(Fetch::Allowlist),
            Some("off") => Ok(Fetch::Off),
            _ => Err("must be \"on\", \"allowlist\" or \"off\"".to_owned()),
        });
        let documents = Self {
            fetch: fetch.unwrap_or_default(),
            hosts: section.texts("hosts", &[]),
            private_hosts: section.texts("private_hosts", &[]),
            ca_file: section.file("ca_file").and_then(NamedFile::path),
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
}
