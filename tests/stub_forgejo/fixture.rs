//! A forge with people and two confidential applications, and one who does to it what browsers and programs do.

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::Url;
use wire::clock::{Clock, UnixTime};

use harness::forge;
use harness::forge::Forge;
use harness::user_agent::{Decision, Page, UserAgent};

pub(crate) const CALLBACK: &str = "https://broker.example/oauth/callback";
/// RFC 7636, appendix B.
pub(crate) const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

pub(crate) struct Fixture {
    pub(crate) root: String,
    pub(crate) http: Client,
    pub(crate) app: App,
    pub(crate) other: App,
    admin: (String, String),
}

#[derive(Clone)]
pub(crate) struct App {
    pub(crate) number: i64,
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// `error` and `error_description`.
pub(crate) type Refusal = (String, String);

pub(crate) fn refused<T>(error: &str, description: &str) -> Result<T, Refusal> {
    Err((error.to_owned(), description.to_owned()))
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// A parameter of the address the browser is sent back to.
pub(crate) fn returned(page: &Page, name: &str) -> Option<String> {
    let to = page.location()?;
    assert!(to.as_str().starts_with(CALLBACK), "sent to {to}");
    to.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

pub(crate) fn exchange_form(code: &str) -> [(&str, &str); 4] {
    [("grant_type", "authorization_code"), ("code", code), ("redirect_uri", CALLBACK), ("code_verifier", VERIFIER)]
}

impl Fixture {
    /// The real Forgejo, where one is given, or a stub.
    pub(crate) async fn given() -> Self {
        let Ok(root) = std::env::var("FORGEJO_URL") else { return Self::stub().await.0 };
        let admin = std::env::var("FORGEJO_ADMIN").expect("FORGEJO_ADMIN=LOGIN:PASSWORD");
        let (login, password) = admin.split_once(':').expect("LOGIN:PASSWORD");
        let fixture = Self::at(root.trim_end_matches('/').to_owned(), (login.to_owned(), password.to_owned()));
        for login in ["alice", "bob", "carol", "erin"] {
            let user = json!({"username": login, "password": format!("secret-of-{login}"),
                "email": format!("{login}@example.org"), "must_change_password": false});
            let status = fixture.as_admin(Method::POST, "/api/v1/admin/users", &user).await.status();
            assert!(status == 201 || status == 422, "new, or from an earlier run: {status}");
        }
        fixture.with_apps().await
    }

    /// A stub, its inside, and its clock.
    pub(crate) async fn stub() -> (Self, Forge, Clock) {
        let clock = Clock::manual(UnixTime::from_secs(1_800_000_000));
        let forge = Forge::new(clock.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let root = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(forge::serve(listener, forge.clone()));
        forge.with(|state| {
            for login in ["alice", "bob", "carol", "erin", "root"] {
                state.add_user(login, &format!("secret-of-{login}"), login == "root");
            }
        });
        let fixture = Self::at(root, ("root".to_owned(), "secret-of-root".to_owned())).with_apps().await;
        forge.with(|state| state.requests.clear());
        (fixture, forge, clock)
    }

    fn at(root: String, admin: (String, String)) -> Self {
        // Err only says that another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
        let none = App { number: 0, id: String::new(), secret: String::new() };
        Self { root, http, app: none.clone(), other: none, admin }
    }

    async fn with_apps(mut self) -> Self {
        self.app = self.new_app("broker").await;
        self.other = self.new_app("other").await;
        self
    }

    async fn new_app(&self, name: &str) -> App {
        let new = json!({"name": name, "confidential_client": true, "redirect_uris": [CALLBACK]});
        let answer = self.as_admin(Method::POST, "/api/v1/user/applications/oauth2", &new).await;
        assert_eq!(answer.status(), 201);
        let made: Value = answer.json().await.unwrap();
        App { number: made["id"].as_i64().unwrap(), id: text(&made["client_id"]), secret: text(&made["client_secret"]) }
    }

    pub(crate) async fn as_admin(&self, method: Method, path: &str, body: &Value) -> Response {
        let request = self.http.request(method, format!("{}{path}", self.root));
        request.basic_auth(&self.admin.0, Some(&self.admin.1)).json(body).send().await.unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.root))
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.root))
    }

    /// The address of a good authorization request, for these scopes.
    pub(crate) fn authorize(&self, scope: &str) -> Url {
        let query = [
            ("client_id", self.app.id.as_str()),
            ("redirect_uri", CALLBACK),
            ("response_type", "code"),
            ("state", "s&t"),
            ("scope", scope),
            ("code_challenge", CHALLENGE),
            ("code_challenge_method", "S256"),
        ];
        Url::parse_with_params(&format!("{}/login/oauth/authorize", self.root), query).unwrap()
    }

    /// Through login and, where it is shown, consent.
    pub(crate) async fn agreed(&self, user_agent: &mut UserAgent, scope: &str) -> Page {
        user_agent.go(self.authorize(scope).as_str(), &[&self.root], Decision::Allow).await
    }

    pub(crate) async fn code(&self, login: &str, scope: &str) -> String {
        let page = self.agreed(&mut user_agent(login), scope).await;
        returned(&page, "code").unwrap_or_else(|| panic!("no code: {} {}", page.status, page.text))
    }

    pub(crate) async fn token(&self, app: &App, pairs: &[(&str, &str)]) -> Result<Value, Refusal> {
        let mut form = vec![("client_id", app.id.as_str()), ("client_secret", app.secret.as_str())];
        form.extend_from_slice(pairs);
        let answer = self.post("/login/oauth/access_token").form(&form).send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        if status == 200 {
            return Ok(body);
        }
        assert_eq!(status, 400, "every refusal of the token endpoint is 400");
        Err((text(&body["error"]), text(&body["error_description"])))
    }

    pub(crate) async fn exchange(&self, code: &str) -> Result<Value, Refusal> {
        self.token(&self.app, &exchange_form(code)).await
    }

    pub(crate) async fn refresh(&self, token: &Value) -> Result<Value, Refusal> {
        let token = token.as_str().unwrap();
        self.token(&self.app, &[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    }

    pub(crate) async fn sign_in(&self, login: &str, scope: &str) -> Value {
        self.exchange(&self.code(login, scope).await).await.unwrap()
    }

    pub(crate) async fn api(&self, path: &str, token: &Value) -> Response {
        self.get(path).bearer_auth(token.as_str().unwrap()).send().await.unwrap()
    }

    /// What introspection says of a token, if that is active. Of others Forgejo 16 says that they are not, and 15
    /// refuses to answer.
    pub(crate) async fn introspect(&self, token: &Value) -> Option<Value> {
        let request = self.post("/login/oauth/introspect").basic_auth(&self.app.id, Some(&self.app.secret));
        let answer = request.form(&[("token", text(token))]).send().await.unwrap();
        if answer.status() == 401 {
            return None;
        }
        let told: Value = answer.json().await.unwrap();
        (told["active"] == true).then_some(told)
    }
}

pub(crate) fn user_agent(login: &str) -> UserAgent {
    UserAgent::new(login, &format!("secret-of-{login}"))
}
