//! People log in, their clients work in real sessions, and end when they are disconnected. The forge is the stub, or a
//! real one: `FORGEJO_URL`, `FORGEJO_ADMIN=LOGIN:PASSWORD`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use url::Url;

use crate::{blocked, config, real_child, skip, stand_in};
use harness::deployment::{Deployment, Program};
use harness::mcp_session::Session;
use harness::user_agent::{Decision, Page, UserAgent};

const REDIRECT: &str = "http://127.0.0.1:9/callback";
const VERIFIER: &str = "a-verifier-of-forty-three-characters-or-more-0123";

/// A deployment where people can log in; on a real Forgejo where one is given.
pub(crate) fn login_deployment(test: &str, child: Program, broker: &str) -> Deployment {
    login_deployment_at(test, child, broker, None)
}

/// The same, with libfaketime where the broker's time is to be moved.
pub(crate) fn login_deployment_at(test: &str, child: Program, broker: &str, faketime: Option<PathBuf>) -> Deployment {
    let mut config = config(test, child);
    config.faketime = faketime;
    config.oauth = true;
    config.forgejo = std::env::var("FORGEJO_URL").ok();
    broker.clone_into(&mut config.broker);
    let deployment = Deployment::set(config).expect("a deployment");
    for login in ["alice", "bob"] {
        deployment.user(login).expect("a user");
    }
    deployment
}

pub(crate) fn user_agent(login: &str) -> UserAgent {
    UserAgent::new(login, &format!("secret-of-{login}"))
}

/// A client that can be written down in a few lines.
pub(crate) struct Client<'a> {
    deployment: &'a Deployment,
    http: reqwest::Client,
    pub(crate) id: String,
}

impl<'a> Client<'a> {
    pub(crate) async fn register(deployment: &'a Deployment) -> Self {
        let http = harness::mcp_session::http();
        let metadata =
            json!({"client_name": "Test", "redirect_uris": [REDIRECT], "token_endpoint_auth_method": "none"});
        let answer =
            http.post(format!("{}/oauth/register", deployment.url)).json(&metadata).send().await.expect("an answer");
        let answer: Value = answer.json().await.expect("json");
        let id = answer.get("client_id").and_then(Value::as_str).expect("an id").to_owned();
        Self { deployment, http, id }
    }

    /// The address at which a login begins.
    pub(crate) fn authorize(&self) -> String {
        let query = [
            ("response_type", "code"),
            ("client_id", &self.id),
            ("redirect_uri", REDIRECT),
            ("state", "x"),
            ("code_challenge_method", "S256"),
            ("code_challenge", "oroLTuavjsSokHw90r4c-vQlAuGTf32wNsPC1UFaIZc"),
        ];
        let url = format!("{}/oauth/authorize", self.deployment.url);
        Url::parse_with_params(&url, query).expect("an address").into()
    }

    async fn send(&self, user_agent: &mut UserAgent, decision: Decision) -> Page {
        user_agent.go(&self.authorize(), &[&self.deployment.url, &self.deployment.forgejo], decision).await
    }

    pub(crate) async fn connect(&self, user_agent: &mut UserAgent, decision: Decision) -> (String, String) {
        let page = self.send(user_agent, decision).await;
        let to = page.location().unwrap_or_else(|| panic!("no redirect but {} {}", page.status, page.text));
        self.redeem(&to).await
    }

    /// The tokens for the code of an answer.
    pub(crate) async fn redeem(&self, to: &Url) -> (String, String) {
        let code = to.query_pairs().find(|(name, _)| name == "code").expect("a code").1.into_owned();
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", &self.id),
            ("redirect_uri", REDIRECT),
            ("code", &code),
            ("code_verifier", VERIFIER),
        ];
        self.tokens(&form).await
    }

    pub(crate) async fn tokens(&self, form: &[(&str, &str)]) -> (String, String) {
        let request = self.http.post(format!("{}/oauth/token", self.deployment.url)).form(form);
        let tokens: Value = request.send().await.expect("an answer").json().await.expect("json");
        let text =
            |name: &str| tokens.get(name).and_then(Value::as_str).unwrap_or_else(|| panic!("{tokens}")).to_owned();
        (text("access_token"), text("refresh_token"))
    }
}

#[tokio::test]
async fn a_login_opens_a_session_of_the_users_own_and_a_refresh_keeps_it() {
    let Some(child) = real_child() else { return skip("login", "no forgejo-mcp") };
    let deployment = login_deployment("login-session", child, "");
    let client = Client::register(&deployment).await;
    for login in ["alice", "bob"] {
        let (access, refresh) = client.connect(&mut user_agent(login), Decision::Allow).await;
        let mut session = Session::open(&deployment.url, &access).await.expect("a session");
        assert!(crate::who(&mut session).await.contains(login));
        let form = [("grant_type", "refresh_token"), ("client_id", client.id.as_str()), ("refresh_token", &refresh)];
        let (second, _) = client.tokens(&form).await;
        session.change_token(&second);
        assert!(crate::who(&mut session).await.contains(login), "the session goes on under the refreshed token");
    }
}

#[tokio::test]
async fn who_allows_reading_only_is_shown_and_may_call_only_what_reads() {
    let Some(child) = real_child() else { return skip("read-only login", "no forgejo-mcp") };
    let deployment = login_deployment("login-readonly", child, "");
    let client = Client::register(&deployment).await;
    let (all, _) = client.connect(&mut user_agent("alice"), Decision::Allow).await;
    let (some, _) = client.connect(&mut user_agent("alice"), Decision::ReadOnly).await;
    let mut writer = Session::open(&deployment.url, &all).await.expect("a session");
    let mut reader = Session::open(&deployment.url, &some).await.expect("a session");
    let (all, some) = (writer.tools().await.expect("tools"), reader.tools().await.expect("tools"));
    assert!(!some.is_empty() && some.len() < all.len(), "{} of {}", some.len(), all.len());
    assert!(crate::who(&mut reader).await.contains("alice"));
    let forbidden = all.iter().find(|tool| !some.contains(tool)).expect("a tool that writes");
    let refused = reader.text(forbidden, json!({})).await.expect_err("refused").to_string();
    assert!(refused.contains("needs the scope forgejo:write"), "{refused}");
}

#[tokio::test]
async fn a_child_whose_annotations_are_useless_is_read_by_the_reviewed_table() {
    let deployment = login_deployment("login-table", stand_in(&[]), "");
    let client = Client::register(&deployment).await;
    let (all, _) = client.connect(&mut user_agent("alice"), Decision::Allow).await;
    let (some, _) = client.connect(&mut user_agent("alice"), Decision::ReadOnly).await;
    let mut reader = Session::open(&deployment.url, &some).await.expect("a session");
    let seen = reader.tools().await.expect("tools");
    assert_eq!(seen.len(), 67, "the 67 of 141 that read, and none of the stand-in's own: {seen:?}");
    let mut writer = Session::open(&deployment.url, &all).await.expect("a session");
    let (_, answer) = writer.send("tools/list", json!({})).await.expect("tools");
    let hint = |name: &str| {
        let tools = answer.pointer("/result/tools").and_then(Value::as_array).expect("a list");
        let tool = tools.iter().find(|tool| tool.get("name") == Some(&json!(name))).expect("the tool");
        tool.pointer("/annotations/readOnlyHint").and_then(Value::as_bool).expect("a hint")
    };
    assert!(hint("list_my_repos") && !hint("delete_file"), "clients need not ask for approval of reads");
}

#[tokio::test]
async fn disconnecting_on_the_account_page_ends_the_children_within_a_second() {
    let deployment = login_deployment("login-disconnect", stand_in(&["--ignore-term"]), "");
    let client = Client::register(&deployment).await;
    let mut alice = user_agent("alice");
    let (access, _) = client.connect(&mut alice, Decision::Allow).await;
    let mut session = Session::open(&deployment.url, &access).await.expect("a session");
    session.tools().await.expect("tools");
    assert_eq!(deployment.children().len(), 1);
    let page = alice.open(format!("{}/account", deployment.url)).await;
    assert!(page.text.contains("1 open session"), "{}", page.text);
    // In the middle of a call, so that it heeds neither the end of its input nor SIGTERM.
    let calling = blocked(&session).await;
    let begun = Instant::now();
    alice.send(&page.form("/account/disconnect")).await;
    assert!(session.tools().await.is_err(), "the token is worthless at once");
    while !deployment.children().is_empty() {
        // By its ladder less than a second; the rest is patience with a busy machine.
        assert!(begun.elapsed() < Duration::from_secs(20), "the child is still there");
        harness::look_again().await;
    }
    let (_, answer) = calling.await.expect("no panic").expect("an answer");
    assert!(answer.pointer("/error/message").is_some(), "the request in flight is answered: {answer}");
    assert!(deployment.supervisor.as_ref().expect("runs").output().contains("signal 9"), "it took SIGKILL");
}

#[tokio::test]
async fn a_login_outlives_a_restart_of_the_broker() {
    let mut deployment = login_deployment("login-restart", stand_in(&[]), "");
    let (id, refresh) = {
        let client = Client::register(&deployment).await;
        let (_, refresh) = client.connect(&mut user_agent("alice"), Decision::Allow).await;
        (client.id, refresh)
    };
    drop(deployment.broker.take());
    deployment.start_broker().expect("the broker starts again");
    let http = harness::mcp_session::http();
    let client = Client { deployment: &deployment, http, id };
    let form = [("grant_type", "refresh_token"), ("client_id", client.id.as_str()), ("refresh_token", &refresh)];
    let (access, _) = client.tokens(&form).await;
    Session::open(&deployment.url, &access).await.expect("a session");
}

#[tokio::test]
async fn forgejos_tokens_are_renewed_underneath_until_the_account_is_barred() {
    let Some(child) = real_child() else { return skip("renewal", "no forgejo-mcp") };
    // As long as Forgejo's tokens live, so that one is due as soon as half of its life has passed, and after a start
    // of the broker at once.
    let mut deployment = login_deployment("login-renewal", child, "[forgejo]\nrefresh_lead = \"1h\"\n");
    // Locked in the end, and on a real forge the other tests' users are the same.
    deployment.user("erin").expect("a user");
    let renewed =
        |deployment: &Deployment| deployment.broker.as_ref().expect("runs").output().matches("token refreshed").count();
    let (mut one, mut two) = {
        let client = Client::register(&deployment).await;
        let (access, _) = client.connect(&mut user_agent("erin"), Decision::Allow).await;
        let mut one = Session::open(&deployment.url, &access).await.expect("a session");
        assert!(crate::who(&mut one).await.contains("erin"));
        assert_eq!(renewed(&deployment), 1, "{}", deployment.output());
        // A second login makes the refresh token of the first worthless; both live on what it brought.
        let (access, _) = client.connect(&mut user_agent("erin"), Decision::Allow).await;
        (one, Session::open(&deployment.url, &access).await.expect("a session"))
    };
    for times in 2..4 {
        drop(deployment.broker.take());
        deployment.start_broker().expect("the broker starts again");
        assert!(crate::who(&mut one).await.contains("erin"));
        assert!(crate::who(&mut two).await.contains("erin"));
        assert_eq!(renewed(&deployment), times, "one for both: {}", deployment.output());
    }
    drop(deployment.broker.take());
    // Forgejo's token endpoint does not notice this; its API does.
    deployment.activate("erin", false).expect("locked");
    deployment.start_broker().expect("the broker starts again");
    let barred = one.tools().await;
    assert!(barred.is_err() && two.tools().await.is_err(), "{}", deployment.output());
    deployment.activate("erin", true).expect("unlocked");
    assert!(deployment.output().contains("account-barred"), "{}", deployment.output());
}

#[tokio::test]
async fn only_members_get_in_where_the_operator_says_so() {
    let deployment = login_deployment(
        "login-members",
        stand_in(&[]),
        "[access]\nallow = [\"org:Acme\"]\ndeny = [\"team:acme/Interns\"]\n",
    );
    deployment.join("alice", "acme", "developers").expect("a member");
    deployment.join("bob", "acme", "interns").expect("a member");
    deployment.user("carol").expect("a user");
    let client = Client::register(&deployment).await;
    client.connect(&mut user_agent("alice"), Decision::Allow).await;
    for kept_out in ["bob", "carol"] {
        let page = client.send(&mut user_agent(kept_out), Decision::Allow).await;
        assert_eq!(page.status, 403, "{kept_out}: {}", page.text);
        assert!(page.text.contains("does not let the account in"), "{}", page.text);
    }
}

#[tokio::test]
async fn readyz_says_that_forgejo_is_away_and_sessions_go_on() {
    let mut config = config("login-away", stand_in(&[]));
    config.oauth = true;
    let deployment = Deployment::set(config).expect("a deployment");
    deployment.user("alice").expect("a user");
    let client = Client::register(&deployment).await;
    let (access, _) = client.connect(&mut user_agent("alice"), Decision::Allow).await;
    let mut session = Session::open(&deployment.url, &access).await.expect("a session");
    deployment.stub("/stub/mode", r#"{"fail":502}"#).expect("the stub fails");
    let ready = client.http.get(format!("{}/readyz", deployment.url)).send().await.expect("an answer");
    assert_eq!(ready.status(), 503);
    let ready: Value = ready.json().await.expect("json");
    assert_eq!(ready, json!({"store": true, "supervisor": true, "forgejo": false}));
    session.tools().await.expect("the session goes on");
}

#[tokio::test]
async fn strangers_are_limited_by_the_address_that_a_trusted_proxy_names() {
    let (named, nobody) = ("[http]\ntrusted_proxies = [\"127.0.0.1\"]\n", "");
    for (trusted, lets_in) in [(named, [201, 429, 201]), (nobody, [201, 429, 429])] {
        let broker = format!("[rates]\nregistrations = 1\n{trusted}");
        let deployment = login_deployment("login-proxy", stand_in(&[]), &broker);
        // The last entry is the proxy's word, and those before it anybody's.
        let from = ["192.0.2.1", "203.0.113.9, 192.0.2.1", "198.51.100.7"];
        for (n, (from, expected)) in from.into_iter().zip(lets_in).enumerate() {
            let metadata = json!({"client_name": format!("Client {n}"), "redirect_uris": [REDIRECT],
                "token_endpoint_auth_method": "none"});
            let request = harness::mcp_session::http().post(format!("{}/oauth/register", deployment.url));
            let answer = request.header("x-forwarded-for", from).json(&metadata).send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), expected, "trusted {trusted}, {from}");
        }
        let told = deployment.output().matches("untrusted-proxy").count();
        assert_eq!(told, usize::from(trusted == nobody), "an operator whose proxy is not named is told, once");
    }
}

#[tokio::test]
async fn pages_of_the_operators_origins_may_call_the_endpoint_and_others_may_not() {
    let deployment =
        login_deployment("login-cors", stand_in(&[]), "[http]\nallowed_origins = [\"https://inspector.example\"]\n");
    let ask = |origin: &'static str| {
        let request = harness::mcp_session::http().request(reqwest::Method::OPTIONS, format!("{}/mcp", deployment.url));
        let request = request.header("origin", origin).header("access-control-request-method", "POST");
        request.header("access-control-request-headers", "authorization,mcp-session-id").send()
    };
    let allowed = ask("https://inspector.example").await.expect("an answer");
    assert_eq!(allowed.headers().get("access-control-allow-origin").expect("allowed"), "https://inspector.example");
    let refused = ask("https://evil.example").await.expect("an answer");
    assert!(!refused.headers().contains_key("access-control-allow-origin"));
    let request = harness::mcp_session::http()
        .post(format!("{}/mcp", deployment.url))
        .header("origin", "https://inspector.example");
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), 401);
    let challenge = answer.headers().get("www-authenticate").expect("a challenge").to_str().expect("text");
    let metadata = format!("resource_metadata=\"{}/.well-known/oauth-protected-resource/mcp\"", deployment.url);
    assert!(challenge.contains(&metadata), "{challenge}");
    let exposed = answer.headers().get("access-control-expose-headers").expect("exposed").to_str().expect("text");
    assert!(exposed.contains("www-authenticate") && exposed.contains("mcp-session-id"), "{exposed}");
}

#[tokio::test]
async fn the_operator_is_told_when_forgejo_keeps_to_the_scopes_of_an_earlier_login() {
    let mut deployment = login_deployment("login-scopes", stand_in(&[]), "");
    {
        let client = Client::register(&deployment).await;
        client.connect(&mut user_agent("alice"), Decision::Allow).await;
    }
    assert!(!deployment.output().contains("scopes-differ"), "{}", deployment.output());
    drop(deployment.broker.take());
    "[forgejo]\nscopes = [\"read:user\", \"read:repository\"]\n".clone_into(&mut deployment.config.broker);
    deployment.start_broker().expect("the broker starts again");
    let client = Client::register(&deployment).await;
    client.connect(&mut user_agent("alice"), Decision::Allow).await;
    let output = deployment.output();
    assert!(output.contains("scopes-differ") && output.contains("write:issue"), "{output}");
}
