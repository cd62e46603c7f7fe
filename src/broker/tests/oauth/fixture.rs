//! The authorization server over the stub forge, at a time that stands still, and a client that talks to it.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::bearer::{BearerLayer, Challenge, Principals, require_bearer};
use crate::auth::principal::Principal;
use crate::auth::rates::{Peer, RateLimits, Rates};
use crate::auth::revocation::Revocation;
use crate::child::spawner::{Backend, SpawnError, SpawnRequest, Spawner};
use crate::deadline::Deadline;
use crate::forge::access::Access;
use crate::forge::api::Forgejo;
use crate::forge::application::Application;
use crate::forge::rotation::{Change, Rotation};
use crate::forge::vault::{Vault, vault_in};
use crate::mcp::writes::RecentWrites;
use crate::metrics::Metrics;
use crate::oauth::client::Client;
use crate::oauth::config::{Bounds, DocumentConfig, OAuthConfig};
use crate::oauth::families::ReusePolicy;
use crate::oauth::redirect::Schemes;
use crate::oauth::site::Site;
use crate::oauth::{Dependencies, OAuth};
use crate::session::config::SessionConfig;
use crate::session::quota::Caps;
use crate::session::registry::Registry;
use crate::store::Store;
use axum::extract::Request;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::routing::get;
use axum::{Extension, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use url::Url;
use wire::clock::{Clock, UnixTime};
use wire::message::TenantId;
use wire::secret::UpstreamToken;

use harness::forge;
use harness::forge::Forge;
use harness::user_agent::{Decision, Page, UserAgent};

pub(crate) const START: UnixTime = UnixTime::from_secs(1_800_000_000);
/// Where the tests' web client gets its codes.
pub(crate) const WEB: &str = "https://client.example/callback";
pub(crate) const VERIFIER: &str = "a-verifier-of-forty-three-characters-or-more-0123";

/// Nothing here starts a child.
#[derive(Debug)]
struct NoSpawner;

impl Spawner for NoSpawner {
    fn spawn(&self, _: SpawnRequest) -> BoxFuture<'_, Result<Backend, SpawnError>> {
        Box::pin(async { Err(SpawnError::Unreachable) })
    }
}

pub(crate) struct Fixture {
    pub(crate) forge: Forge,
    pub(crate) forgejo: String,
    pub(crate) url: String,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) oauth: OAuth,
    pub(crate) rotation: Rotation,
    pub(crate) revocation: Revocation,
    pub(crate) changes: mpsc::Receiver<Change>,
    pub(crate) limits: Arc<RateLimits>,
    pub(crate) writes: RecentWrites,
    pub(crate) vault: Arc<Vault>,
    pub(crate) http: reqwest::Client,
    _dir: tempfile::TempDir,
}

/// How a fixture differs from the usual one.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) access: Access,
    pub(crate) documents: DocumentConfig,
    pub(crate) rates: Rates,
    pub(crate) proxies: Vec<ipnet::IpNet>,
    pub(crate) clients: Vec<Client>,
    pub(crate) reuse: ReusePolicy,
    /// Where the broker believes to be reached, if not where it is.
    pub(crate) public_url: Option<&'static str>,
    /// What the pages say.
    pub(crate) site: Site,
    /// Whether the first challenge names no error.
    pub(crate) bare_challenge: bool,
    /// Where browsers find Forgejo, if elsewhere.
    pub(crate) forge_for_browsers: Option<&'static str>,
    /// What is asked of Forgejo.
    pub(crate) scopes: &'static [&'static str],
    /// What strangers may leave behind.
    pub(crate) bounds: Bounds,
}

impl Default for Terms {
    fn default() -> Self {
        let rates = Rates { registrations: 1000, logins: 1000, documents: 1000, failures: 1000 };
        Self {
            access: Access::default(),
            documents: DocumentConfig::default(),
            rates,
            proxies: Vec::new(),
            clients: Vec::new(),
            reuse: ReusePolicy { window: Duration::from_mins(5), one_branch: false },
            site: Site::default(),
            public_url: None,
            bare_challenge: false,
            forge_for_browsers: None,
            scopes: &["write:user", "write:repository", "read:organization"],
            bounds: Bounds::default(),
        }
    }
}

/// Alice's number at the forge.
pub(crate) fn alices_number() -> TenantId {
    TenantId::new(1).expect("an id")
}

pub(crate) fn challenge_of(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()))
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(Terms::default()).await
    }

    pub(crate) async fn with(terms: Terms) -> Self {
        let clock = Clock::manual(START);
        let forge = Forge::new(clock.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let forgejo = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(forge::serve(listener, forge.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let public_url = terms.public_url.map_or_else(|| url.clone(), ToOwned::to_owned);
        let application = forge.with(|state| {
            state.root.clone_from(&forgejo);
            for login in ["alice", "bob"] {
                state.add_user(login, "secret", false);
            }
            let id = state.add_app(0, "broker", true, vec![format!("{url}/oauth/callback")]);
            let app = state.app(id).expect("there");
            let client_secret = UpstreamToken::parse(app.secret.clone()).expect("a secret");
            let scopes = terms.scopes.iter().map(|&scope| scope.to_owned()).collect();
            Application { client_id: app.client_id.clone(), client_secret, scopes }
        });
        let dir = tempfile::tempdir().expect("a directory");
        let vault = Arc::new(vault_in(dir.path()));
        let store = Store::in_memory().await.expect("a store");
        let client = Forgejo::new(&forgejo).expect("a client");
        let client = client.with_public_url(terms.forge_for_browsers.unwrap_or(&forgejo));
        let (rotation, changes) = Rotation::new(
            store.clone(),
            Arc::clone(&vault),
            client.clone(),
            Some(application.clone()),
            terms.access,
            clock.clone(),
            Duration::from_mins(5),
        );
        let challenge = Challenge {
            resource_metadata: Some(format!("{url}/.well-known/oauth-protected-resource/mcp")),
            scope: "forgejo:read forgejo:write",
            is_bare: terms.bare_challenge,
        };
        let principals =
            Principals::new(store.clone(), Arc::clone(&vault), clock.clone(), challenge, Some(rotation.clone()));
        let registry = registry(&store, &clock).await;
        let revocation =
            Revocation { store: store.clone(), principals: principals.clone(), registry, clock: clock.clone() };
        let limits = Arc::new(RateLimits::new(terms.rates, terms.proxies));
        let metrics = Metrics::new().expect("metrics");
        let layer = BearerLayer { principals, limits: Arc::clone(&limits), metrics };
        let writes = RecentWrites::default();
        let oauth = OAuth::new(Dependencies {
            public_url,
            policy: OAuthConfig {
                clients: terms.clients,
                reuse: terms.reuse,
                bounds: terms.bounds,
                ..policy(terms.documents)
            },
            site: terms.site,
            application: Some(application),
            store: store.clone(),
            forgejo: client,
            rotation: rotation.clone(),
            revocation: revocation.clone(),
            limits: Arc::clone(&limits),
            clock: clock.clone(),
            writes: writes.clone(),
        });
        let oauth = oauth.expect("an authorization server");
        let who = get(|Extension(caller): Extension<Principal>| async move {
            format!("{} {}", caller.login, caller.scopes.as_str())
        });
        let router =
            oauth.routes().merge(Router::new().route("/mcp", who.layer(from_fn_with_state(layer, require_bearer))));
        let router = router.layer(from_fn(async |mut request: Request, next: Next| {
            request.extensions_mut().insert(Peer { address: [127, 0, 0, 1].into(), is_proxy: false });
            request.extensions_mut().insert(Deadline::within(Duration::from_mins(5)));
            next.run(request).await
        }));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build();
        let http = http.expect("a client");
        Self {
            forge,
            forgejo,
            url,
            clock,
            store,
            oauth,
            rotation,
            revocation,
            changes,
            http,
            limits,
            writes,
            vault,
            _dir: dir,
        }
    }

    /// The hosts that a browser stays with until the client gets its answer.
    pub(crate) fn known(&self) -> [&str; 2] {
        [&self.url, &self.forgejo]
    }

    pub(crate) fn misbehave(&self, change: impl FnOnce(&mut forge::state::Mode)) {
        let mut mode = forge::state::Mode::default();
        change(&mut mode);
        self.forge.set_mode(mode);
    }

    /// POST of JSON to the registration endpoint.
    pub(crate) async fn register(&self, metadata: &Value) -> (u16, Value) {
        let request = self.http.post(format!("{}/oauth/register", self.url)).json(metadata);
        let response = request.send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.expect("json"))
    }

    /// A public client with one address.
    pub(crate) async fn client(&self, redirect: &str) -> String {
        let metadata = json!({"client_name": "Test client", "redirect_uris": [redirect],
            "token_endpoint_auth_method": "none"});
        let (status, registered) = self.register(&metadata).await;
        assert_eq!(status, 201, "{registered}");
        registered["client_id"].as_str().expect("an id").to_owned()
    }

    /// The address of a good authorization request, with changes: an empty value takes the parameter away.
    pub(crate) fn authorize(&self, client: &str, redirect: &str, changes: &[(&str, &str)]) -> String {
        let (challenge, resource) = (challenge_of(VERIFIER), format!("{}/mcp", self.url));
        let mut query = vec![
            ("response_type", "code"),
            ("client_id", client),
            ("redirect_uri", redirect),
            ("code_challenge", challenge.as_str()),
            ("code_challenge_method", "S256"),
            ("state", "client-state"),
            ("resource", resource.as_str()),
            ("scope", "forgejo:read forgejo:write"),
        ];
        query.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
        query.extend(changes.iter().filter(|(_, value)| !value.is_empty()));
        Url::parse_with_params(&format!("{}/oauth/authorize", self.url), &query).expect("an address").into()
    }

    /// The whole login of a person, up to the redirect to the client: its parameters.
    pub(crate) async fn log_in(&self, user_agent: &mut UserAgent, client: &str, redirect: &str) -> Answer {
        let page = user_agent.go(&self.authorize(client, redirect, &[]), &self.known(), Decision::Allow).await;
        Answer::of(&page)
    }

    /// POST of a form to the token endpoint.
    pub(crate) async fn token(&self, form: &[(&str, &str)]) -> (u16, Value) {
        let response = self.http.post(format!("{}/oauth/token", self.url)).form(form).send().await.expect("an answer");
        assert_eq!(response.headers()["cache-control"], "no-store");
        (response.status().as_u16(), response.json().await.expect("json"))
    }

    pub(crate) async fn redeem(&self, client: &str, redirect: &str, code: &str) -> (u16, Value) {
        self.token(&[
            ("grant_type", "authorization_code"),
            ("client_id", client),
            ("redirect_uri", redirect),
            ("code", code),
            ("code_verifier", VERIFIER),
        ])
        .await
    }

    pub(crate) async fn refresh(&self, client: &str, token: &str) -> (u16, Value) {
        self.token(&[("grant_type", "refresh_token"), ("client_id", client), ("refresh_token", token)]).await
    }

    /// A connected client: its access and its refresh token.
    pub(crate) async fn connect(&self, user_agent: &mut UserAgent, client: &str, redirect: &str) -> (String, String) {
        let answer = self.log_in(user_agent, client, redirect).await;
        let (status, tokens) = self.redeem(client, redirect, answer.get("code")).await;
        assert_eq!(status, 200, "{tokens}");
        let text = |name: &str| tokens[name].as_str().expect("a token").to_owned();
        (text("access_token"), text("refresh_token"))
    }

    /// Who a token stands for, with its scopes; or the status of the refusal.
    pub(crate) async fn who(&self, token: &str) -> Result<String, u16> {
        let response = self.http.get(format!("{}/mcp", self.url)).bearer_auth(token).send().await.expect("an answer");
        match response.status().as_u16() {
            200 => Ok(response.text().await.expect("text")),
            status => Err(status),
        }
    }
}

async fn registry(store: &Store, clock: &Clock) -> Registry {
    let caps = Caps { total: 10, per_user: 10 };
    let second = Duration::from_secs(1);
    let policy = SessionConfig {
        sessions: caps,
        children: caps,
        child_idle: second,
        session_idle: second,
        evict_after: second,
        start_timeout: second,
        request_timeout: second,
        memory: crate::budget::BudgetCaps { total: 1 << 20, per_user: 1 << 20 },
        max_line: 1024,
        respawn: false,
        drain: second,
    };
    let loaded = Registry::load(
        policy,
        Arc::new(NoSpawner),
        Arc::new(store.clone()),
        clock.clone(),
        Metrics::new().expect("metrics"),
    );
    loaded.await.expect("a registry")
}

pub(crate) fn policy(documents: DocumentConfig) -> OAuthConfig {
    OAuthConfig {
        access_ttl: Duration::from_hours(1),
        refresh_ttl: Duration::from_hours(30 * 24),
        reuse: Terms::default().reuse,
        visit_ttl: Duration::from_hours(12),
        keep_unused: Duration::from_hours(7 * 24),
        bare_challenge: false,
        schemes: Schemes::new(vec!["cursor".to_owned()]),
        clients: Vec::new(),
        documents,
        bounds: Bounds::default(),
    }
}

/// What a client is told at its redirect address.
#[derive(Debug, Clone)]
pub(crate) struct Answer(pub(crate) Url);

impl Answer {
    pub(crate) fn of(page: &Page) -> Self {
        Self(page.location().unwrap_or_else(|| panic!("no redirect but {} {}", page.status, page.text)))
    }

    pub(crate) fn get(&self, name: &str) -> &str {
        let mut found = self.0.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        found.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    /// Everything in front of the query.
    pub(crate) fn address(&self) -> String {
        let mut url = self.0.clone();
        url.set_query(None);
        url.into()
    }

    pub(crate) fn param(&self, name: &str) -> Option<String> {
        self.0.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }
}
