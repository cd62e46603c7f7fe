//! What the stub forge remembers: users, tokens, applications, grants, and how it is told to misbehave.
//!
//! Nothing here is secure or means to be: passwords lie in the open, "bcrypt" is `==`, and the tokens' signatures only
//! look like RS256. What is kept faithfully is the order of events: counters, expiry, reuse.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use wire::clock::{Clock, UnixTime};

/// Seconds an access token lives unless told otherwise: Forgejo's `ACCESS_TOKEN_EXPIRATION_TIME`.
const ACCESS_TTL: i64 = 3600;
/// Seconds a refresh token lives: Forgejo's 730 hours.
const REFRESH_TTL: i64 = 730 * 3600;

/// Where a user's organisations are asked for.
pub const MEMBERSHIPS: &str = "/api/v1/user/orgs";

/// One forge. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Forge {
    inner: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// Everything behind the lock.
pub struct State {
    /// The time, on which expiry depends; moved by [`State::advance`].
    clock: Clock,
    advanced: i64,
    /// The root URL without a trailing slash: issuer, avatars, links.
    pub root: String,
    pub users: Vec<User>,
    /// The number of the newest account: none is given out twice.
    newest: i64,
    /// Logins in lower case that were given up, and by whom.
    former: HashMap<String, i64>,
    pub tokens: HashMap<String, PersonalToken>,
    pub apps: Vec<App>,
    pub grants: Vec<Grant>,
    pub codes: HashMap<String, Code>,
    /// Browser sessions: cookie to user id.
    pub sessions: HashMap<String, i64>,
    pub issues: Vec<Issue>,
    pub mode: Mode,
    pub requests: Vec<Seen>,
    /// Whether somebody is held back now.
    pub holds: bool,
    serial: u64,
    /// Accounts that were ever made, also before a reset: each has a time of its own.
    accounts: u32,
    /// Which pair of keys signs tokens; a forge that was set up anew has another.
    pub signing_key: u8,
}

/// A user. `id` never changes, the rest can.
#[expect(clippy::struct_excessive_bools, reason = "Forgejo has them")]
pub struct User {
    pub id: i64,
    pub login: String,
    pub password: String,
    pub admin: bool,
    pub active: bool,
    pub prohibit_login: bool,
    pub must_change_password: bool,
    pub restricted: bool,
    /// When the account was made, as the API tells it: with the server's own offset from UTC.
    pub created: String,
    /// Organisation and team.
    pub teams: Vec<(String, String)>,
}

impl User {
    /// Why the API refuses this user, if it does. OAuth endpoints never ask.
    pub fn locked(&self) -> bool {
        !self.active || self.prohibit_login || self.must_change_password
    }
}

/// A personal access token.
pub struct PersonalToken {
    pub user: i64,
    pub scopes: String,
}

/// An OAuth application.
pub struct App {
    pub id: i64,
    pub owner: i64,
    pub name: String,
    pub client_id: String,
    pub secret: String,
    pub confidential: bool,
    pub redirects: Vec<String>,
}

/// What a user granted an application: at most one per (user, application), with one counter for all its tokens.
pub struct Grant {
    pub id: i64,
    pub user: i64,
    pub app: i64,
    /// Fixed by the first authorisation.
    pub scope: String,
    pub nonce: String,
    /// Raised by every code exchange and every refresh; a refresh token is good only at its own value.
    pub counter: i64,
    /// The newest access token, until it is first used: until then nobody knows whether it arrived.
    pub unused: Option<String>,
}

/// An authorisation code, good once and for ever.
pub struct Code {
    pub grant: i64,
    pub redirect_uri: String,
    pub challenge: String,
    pub method: String,
}

/// An issue somebody filed through the API.
pub struct Issue {
    pub repo: String,
    pub number: i64,
    pub title: String,
    pub author: String,
}

/// How the forge misbehaves. Everything but `/stub/` is subject to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch")]
pub struct Mode {
    /// Accept requests and never answer until the mode changes.
    pub hang: bool,
    /// The same for the API alone; the OAuth endpoints answer.
    pub hang_api: bool,
    /// Answer every request to the API with 502; the OAuth endpoints answer.
    pub fail_api: bool,
    /// Answer requests for organisations with 502; nothing else changes.
    pub fail_memberships: bool,
    /// Accept requests for organisations and never answer until the mode changes.
    pub hang_memberships: bool,
    /// Accept requests to the API with this user's tokens and never answer until the mode changes.
    pub hang_api_of: Option<i64>,
    /// Answer requests to the API with this user's tokens, or about this user, with 500.
    pub fail_api_of: Option<i64>,
    /// Milliseconds that each answer takes.
    pub slow: Option<u64>,
    /// Let the token endpoint do its work, counter and all, and hold the first answer back until the mode changes.
    pub hold_first_pair: bool,
    /// Hold the first request to the token endpoint back in the same way, before its work.
    pub hold_first_exchange: bool,
    /// Answer every request to the token endpoint with 503; nothing else changes.
    pub fail_tokens: bool,
    /// Answer every request with this status.
    pub fail: Option<u16>,
    /// Let the token endpoint do its work, counter and all, and then close without an answer.
    pub lose_answer: bool,
    /// Seconds a new access token lives.
    pub access_ttl: Option<i64>,
}

/// One request as `/stub/requests` tells it: no header, no body, no query.
#[derive(Debug, Clone, Serialize)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// The login whose token came along, if it was a good one.
    pub user: Option<String>,
}

/// The claims of Forgejo's OAuth tokens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Claims {
    pub gnt: i64,
    /// 0 access, 1 refresh.
    pub tt: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnt: Option<i64>,
    pub exp: i64,
    pub iat: i64,
}

impl Forge {
    /// A forge without users, on the given clock. `root` is set by whoever binds its listener.
    pub fn new(clock: Clock) -> Self {
        let state = State {
            clock,
            advanced: 0,
            root: String::new(),
            users: Vec::new(),
            newest: 0,
            former: HashMap::new(),
            tokens: HashMap::new(),
            apps: Vec::new(),
            grants: Vec::new(),
            codes: HashMap::new(),
            sessions: HashMap::new(),
            issues: Vec::new(),
            mode: Mode::default(),
            requests: Vec::new(),
            holds: false,
            serial: 0,
            accounts: 0,
            signing_key: 0xa5,
        };
        Self { inner: Arc::new(Mutex::new(state)), changed: Arc::new(Notify::new()) }
    }

    /// Runs `work` alone with the state.
    pub fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.inner.lock())
    }

    /// Puts a new mode in force and wakes the requests that hang.
    pub fn set_mode(&self, mode: Mode) {
        {
            let mut state = self.inner.lock();
            (state.mode, state.holds) = (mode, false);
        }
        self.changed.notify_waiters();
    }

    /// Waits for as long as the mode says that a request, with this user's token, is to hang.
    pub async fn unhung(&self, path: &str, user: Option<i64>) {
        let is_api = path.starts_with("/api/");
        self.unheld(|state| {
            let mode = state.mode;
            let of_these = mode.hang_api && is_api || mode.hang_memberships && path == MEMBERSHIPS;
            let of_theirs = is_api && user.is_some() && mode.hang_api_of == user;
            mode.hang || of_these || of_theirs
        })
        .await;
        let slow = self.inner.lock().mode.slow;
        if let Some(slow) = slow {
            tokio::time::sleep(Duration::from_millis(slow)).await;
        }
    }

    /// Holds the first that comes here back until the mode changes, if the mode says so.
    pub async fn held_back(&self, is_so: impl Fn(&Mode) -> bool) {
        let is_first = self.with(|state| is_so(&state.mode) && !std::mem::replace(&mut state.holds, true));
        if is_first {
            self.unheld(|state| state.holds).await;
        }
    }

    async fn unheld(&self, holds: impl Fn(&State) -> bool) {
        loop {
            // Made before the look, so that a change between the look and the wait is not missed.
            let changed = self.changed.notified();
            if !holds(&self.inner.lock()) {
                return;
            }
            changed.await;
        }
    }
}

impl State {
    /// The forge's time in seconds.
    pub fn now(&self) -> i64 {
        UnixTime::secs(self.clock.now()).saturating_add(self.advanced)
    }

    /// Moves this forge's time on; the clock it was given stays.
    pub fn advance(&mut self, span: Duration) {
        self.advanced = self.advanced.saturating_add(i64::try_from(span.as_secs()).unwrap_or(i64::MAX));
    }

    /// A word nobody had before: unique, and the same from run to run.
    pub fn fresh(&mut self, prefix: &str) -> String {
        self.serial += 1;
        let digest = Sha256::digest(format!("{}{prefix}{}", self.root, self.serial).as_bytes());
        format!("{prefix}{}", hex(digest.get(..20).unwrap_or_default()))
    }

    /// Adds a user. The first id is 1.
    pub fn add_user(&mut self, login: &str, password: &str, admin: bool) -> i64 {
        self.newest += 1;
        let id = self.newest;
        self.former.remove(&login.to_lowercase());
        let (login, password) = (login.to_owned(), password.to_owned());
        let made = self.accounts;
        self.accounts += 1;
        let created = format!("2026-01-01T{:02}:{:02}:{:02}+01:00", made / 3600 % 24, made / 60 % 60, made % 60);
        self.users.push(User {
            id,
            login,
            password,
            admin,
            active: true,
            prohibit_login: false,
            must_change_password: false,
            restricted: false,
            created,
            teams: Vec::new(),
        });
        id
    }

    /// Adds a personal access token with space-separated scopes; none means all.
    pub fn add_token(&mut self, login: &str, scopes: &str) -> Option<String> {
        let user = self.user_by_login(login)?.id;
        let token = self.fresh("");
        self.tokens.insert(token.clone(), PersonalToken { user, scopes: effective(scopes) });
        Some(token)
    }

    /// Registers an application and gives back its id.
    pub fn add_app(&mut self, owner: i64, name: &str, confidential: bool, redirects: Vec<String>) -> i64 {
        let id = self.apps.last().map_or(1, |app| app.id + 1);
        let word = self.fresh("");
        let client_id =
            [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| word.get(range).unwrap_or_default()).join("-");
        let secret = self.fresh("gto_");
        self.apps.push(App { id, owner, name: name.to_owned(), client_id, secret, confidential, redirects });
        id
    }

    /// Sets the forge up anew under the same address: nobody and nothing is left, numbers begin at 1 again, and with
    /// `new_key` even the key that signs tokens is another. Without it, as where only the database was lost, old tokens
    /// are good again as soon as their grant's number is given out again.
    pub fn reset(&mut self, new_key: bool) {
        self.users.clear();
        self.newest = 0;
        self.former.clear();
        self.tokens.clear();
        self.apps.clear();
        self.grants.clear();
        self.codes.clear();
        self.sessions.clear();
        self.issues.clear();
        if new_key {
            self.signing_key = self.signing_key.wrapping_add(1);
        }
    }

    /// Purges a user: tokens, sessions, applications and grants go too.
    pub fn remove_user(&mut self, id: i64) {
        self.users.retain(|user| user.id != id);
        self.tokens.retain(|_, token| token.user != id);
        self.sessions.retain(|_, user| *user != id);
        self.grants.retain(|grant| grant.user != id);
        self.apps.retain(|app| app.owner != id);
        self.former.retain(|_, user| *user != id);
    }

    /// Gives an account another login, unless somebody has that; whether it was done.
    pub fn rename_user(&mut self, from: &str, to: &str) -> bool {
        if self.user_by_login(to).is_some() {
            return false;
        }
        let Some(user) = self.users.iter_mut().find(|user| user.login.eq_ignore_ascii_case(from)) else { return false };
        to.clone_into(&mut user.login);
        self.former.insert(from.to_lowercase(), user.id);
        self.former.remove(&to.to_lowercase());
        true
    }

    /// Who gave up this login.
    pub fn former_login(&self, login: &str) -> Option<&User> {
        self.user(*self.former.get(&login.to_lowercase())?)
    }

    pub fn user(&self, id: i64) -> Option<&User> {
        self.users.iter().find(|user| user.id == id)
    }

    pub fn user_by_login(&self, login: &str) -> Option<&User> {
        self.users.iter().find(|user| user.login.eq_ignore_ascii_case(login))
    }

    pub fn app(&self, id: i64) -> Option<&App> {
        self.apps.iter().find(|app| app.id == id)
    }

    pub fn app_by_client(&self, client_id: &str) -> Option<&App> {
        self.apps.iter().find(|app| app.client_id == client_id)
    }

    pub fn grant(&mut self, id: i64) -> Option<&mut Grant> {
        self.grants.iter_mut().find(|grant| grant.id == id)
    }

    /// Raises the grant's counter and writes the token answer, keys in Forgejo's order, newline at the end.
    pub fn issue_pair(&mut self, grant: i64) -> Option<String> {
        let now = self.now();
        let exp = self.mode.access_ttl.unwrap_or(ACCESS_TTL);
        let signer = self.signer();
        let issuer = self.root.clone();
        let held = self.grant(grant)?;
        held.counter += 1;
        let (user, app, counter, nonce) = (held.user, held.app, held.counter, held.nonce.clone());
        let openid = held.scope.split(' ').any(|scope| scope == "openid");
        let access = sign(&signer, &json!(Claims { gnt: grant, tt: 0, cnt: None, exp: now + exp, iat: now }));
        held.unused = Some(access.clone());
        let refresh =
            sign(&signer, &json!(Claims { gnt: grant, tt: 1, cnt: Some(counter), exp: now + REFRESH_TTL, iat: now }));
        let id_token = if openid {
            let aud = &self.app(app)?.client_id;
            let login = &self.user(user)?.login;
            let claims = json!({"iss": issuer, "sub": user.to_string(), "aud": [aud], "exp": now + exp, "iat": now,
                "nonce": nonce, "name": login, "preferred_username": login});
            format!(r#","id_token":"{}""#, sign(&signer, &claims))
        } else {
            String::new()
        };
        Some(format!(
            "{{\"access_token\":\"{access}\",\"token_type\":\"bearer\",\"expires_in\":{exp},\"refresh_token\":\"{refresh}\"{id_token}}}\n"
        ))
    }

    /// What makes this forge's signatures its own.
    fn signer(&self) -> String {
        format!("{}{}", self.root, self.signing_key)
    }

    /// The claims of one of our OAuth tokens, unless it is foreign or expired.
    pub fn claims(&self, token: &str) -> Result<Claims, Unreadable> {
        let payload = token.split('.').nth(1).ok_or(Unreadable::Malformed)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Unreadable::Malformed)?;
        let payload: Value = serde_json::from_slice(&payload).map_err(|_| Unreadable::Malformed)?;
        if sign(&self.signer(), &payload) != token {
            return Err(Unreadable::Malformed);
        }
        let claims: Claims = serde_json::from_value(payload).map_err(|_| Unreadable::Malformed)?;
        if claims.exp <= self.now() { Err(Unreadable::Expired) } else { Ok(claims) }
    }
}

/// Why an OAuth token cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    Malformed,
    Expired,
}

/// A JWT whose signature has the size of RS256 and is made of hashes: the same claims give the same token.
fn sign(signer: &str, claims: &Value) -> String {
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","kid":"stub","typ":"JWT"}"#);
    let body = URL_SAFE_NO_PAD.encode(claims.to_string());
    let mut signature = Vec::with_capacity(256);
    for block in 0_u8..8 {
        signature.extend_from_slice(&Sha256::digest(format!("{signer}{block}{head}.{body}").as_bytes()));
    }
    format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The scopes that count: the valid ones that are not OIDC's; `all` where none is left.
pub fn effective(asked: &str) -> String {
    const GROUPS: [&str; 9] =
        ["activitypub", "admin", "misc", "notification", "organization", "package", "issue", "repository", "user"];
    let valid = |scope: &&str| {
        *scope == "all"
            || *scope == "public-only"
            || scope
                .split_once(':')
                .is_some_and(|(right, group)| ["read", "write"].contains(&right) && GROUPS.contains(&group))
    };
    let kept: Vec<&str> = asked.split(' ').filter(valid).collect();
    if kept.is_empty() { "all".to_owned() } else { kept.join(" ") }
}

/// Whether effective `scopes` hold `needed` (`read:user`); write includes read.
pub fn allows(scopes: &str, needed: &str) -> bool {
    scopes.split(' ').any(|scope| {
        scope == "all"
            || scope == needed
            || scope.strip_prefix("write:").is_some_and(|group| needed.strip_prefix("read:") == Some(group))
    })
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |word, byte| word + &format!("{byte:02x}"))
}
