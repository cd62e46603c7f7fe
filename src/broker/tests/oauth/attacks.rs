//! One test for each attack that README names: what is tried, and that it comes to nothing.

use std::time::Duration;

use serde_json::json;

use crate::tests::oauth::fixture::{Answer, Fixture, VERIFIER, WEB, challenge_of};
use harness::user_agent::{Decision, Form, Page, UserAgent, decided};

const EVIL: &str = "https://evil.example/callback";

/// Somebody who has agreed to the honest client, and is still logged in everywhere.
async fn connected() -> (Fixture, UserAgent, String, String, String) {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let (access, refresh) = fixture.connect(&mut alice, &client, WEB).await;
    (fixture, alice, client, access, refresh)
}

/// The consent page is sent, and the way to Forgejo begins.
async fn agreed(fixture: &Fixture, user_agent: &mut UserAgent, client: &str) -> Page {
    let page = user_agent.open(fixture.authorize(client, WEB, &[])).await;
    user_agent.send(&decided(page.form("/oauth/consent"), Decision::Allow)).await
}

/// Follows Forgejo's pages until the browser is sent back to the broker: the address it would open next.
async fn back_from_forgejo(fixture: &Fixture, user_agent: &mut UserAgent, mut page: Page) -> String {
    loop {
        page = match page.location() {
            Some(to) if to.as_str().starts_with(&format!("{}/oauth/callback", fixture.url)) => return to.into(),
            Some(to) => user_agent.open(to).await,
            None if page.text.contains("/user/login") => {
                user_agent.send(&page.form("/user/login").with("user_name", "alice").with("password", "secret")).await
            }
            None => user_agent.send(&page.form("/login/oauth/grant").with("granted", "true")).await,
        };
    }
}

#[tokio::test]
async fn confused_deputy_a_new_client_cannot_ride_on_the_consent_for_another() {
    let (fixture, mut alice, _, _, _) = connected().await;
    let evil = fixture.client(EVIL).await;
    let page = alice.open(fixture.authorize(&evil, EVIL, &[])).await;
    assert_eq!(page.status, 200, "no redirect, neither to Forgejo nor to the client");
    assert!(page.location().is_none() && page.text.contains("evil.example"));
}

#[tokio::test]
async fn confused_deputy_the_consent_of_one_user_is_not_anothers() {
    let (fixture, mut alice, client, _, _) = connected().await;
    // At Forgejo somebody else is logged in by now; the broker still knows alice.
    alice.cookies.retain(|(_, name), _| name != "session");
    let mut as_bob = alice.clone();
    let mut page = as_bob.open(fixture.authorize(&client, WEB, &[])).await;
    loop {
        page = match page.location() {
            Some(to) => {
                assert!(!to.as_str().starts_with(WEB), "bob never agreed");
                as_bob.open(to).await
            }
            None if page.text.contains("/user/login") => {
                as_bob.send(&page.form("/user/login").with("user_name", "bob").with("password", "secret")).await
            }
            None if page.text.contains("/login/oauth/grant") => {
                as_bob.send(&page.form("/login/oauth/grant").with("granted", "true")).await
            }
            None => break,
        };
    }
    assert!(page.text.contains("/oauth/consent") && page.text.contains("bob"), "{}", page.text);
}

#[tokio::test]
async fn confused_deputy_what_was_agreed_on_a_page_for_one_user_is_not_anothers() {
    let (fixture, mut alice, _, _, _) = connected().await;
    let other = fixture.client("https://other.example/cb").await;
    let page = alice.open(fixture.authorize(&other, "https://other.example/cb", &[])).await;
    assert!(page.text.contains("you are logged in as <strong>alice</strong>"), "{}", page.text);
    // At Forgejo somebody else is logged in by now.
    alice.cookies.retain(|(_, name), _| name != "session");
    let mut page = alice.send(&decided(page.form("/oauth/consent"), Decision::Allow)).await;
    loop {
        page = match page.location() {
            Some(to) => {
                assert!(!to.as_str().starts_with("https://other.example"), "bob never agreed");
                alice.open(to).await
            }
            None if page.text.contains("/user/login") => {
                alice.send(&page.form("/user/login").with("user_name", "bob").with("password", "secret")).await
            }
            None if page.text.contains("/login/oauth/grant") => {
                alice.send(&page.form("/login/oauth/grant").with("granted", "true")).await
            }
            None => break,
        };
    }
    assert!(page.text.contains("you are logged in as <strong>bob</strong>"), "{}", page.text);
}

#[tokio::test]
async fn code_injection_a_stolen_code_is_worthless_without_the_verifier() {
    let (fixture, mut alice, client, _, _) = connected().await;
    let answer = fixture.log_in(&mut alice, &client, WEB).await;
    let steal = |verifier: &'static str| {
        let form = [
            ("grant_type", "authorization_code".to_owned()),
            ("client_id", client.clone()),
            ("redirect_uri", WEB.to_owned()),
            ("code", answer.get("code").to_owned()),
            ("code_verifier", verifier.to_owned()),
        ];
        let request = fixture.http.post(format!("{}/oauth/token", fixture.url)).form(&form);
        async move { request.send().await.expect("an answer").status().as_u16() }
    };
    assert_eq!(steal("another-verifier-of-forty-three-characters-xxxxx").await, 400);
    assert_eq!(steal("").await, 400);
    let (status, _) = fixture.redeem(&client, WEB, answer.get("code")).await;
    assert_eq!(status, 200, "the thief has not used it up either");
}

#[tokio::test]
async fn code_injection_a_code_is_for_its_client_and_its_address_only() {
    let (fixture, mut alice, client, _, _) = connected().await;
    let evil = fixture.client(EVIL).await;
    let code = fixture.log_in(&mut alice, &client, WEB).await.get("code").to_owned();
    assert_eq!(fixture.redeem(&evil, EVIL, &code).await.0, 400);
    assert_eq!(fixture.redeem(&evil, WEB, &code).await.0, 400);
    assert_eq!(fixture.redeem(&client, EVIL, &code).await.0, 400);
    assert_eq!(fixture.redeem(&client, WEB, &code).await.0, 200);
}

#[tokio::test]
async fn code_replay_ends_what_the_code_was_redeemed_for() {
    let (fixture, mut alice, client, _, _) = connected().await;
    let code = fixture.log_in(&mut alice, &client, WEB).await.get("code").to_owned();
    let (_, tokens) = fixture.redeem(&client, WEB, &code).await;
    let access = tokens["access_token"].as_str().expect("a token").to_owned();
    assert!(fixture.who(&access).await.is_ok());
    // At once and with its proof it is the client, which has not heard the answer.
    fixture.clock.advance(Duration::from_secs(9));
    assert_eq!(fixture.redeem(&client, WEB, &code).await.0, 400);
    assert!(fixture.who(&access).await.is_ok(), "what it was redeemed for lives on");
    fixture.clock.advance(Duration::from_secs(1));
    let (status, refused) = fixture.redeem(&client, WEB, &code).await;
    assert_eq!((status, &refused["error"]), (400, &json!("invalid_grant")));
    assert_eq!(fixture.who(&access).await, Err(401));
    let refresh = tokens["refresh_token"].as_str().expect("a token");
    assert_eq!(fixture.refresh(&client, refresh).await.0, 400);
}

#[tokio::test]
async fn code_replay_without_the_proof_ends_it_at_once() {
    let (fixture, mut alice, client, _, _) = connected().await;
    for thief in [fixture.client(EVIL).await, client.clone()] {
        let code = fixture.log_in(&mut alice, &client, WEB).await.get("code").to_owned();
        let (_, tokens) = fixture.redeem(&client, WEB, &code).await;
        let verifier = "some-other-verifier-of-more-than-forty-three-characters";
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", &thief),
            ("code", &code),
            ("redirect_uri", WEB),
            ("code_verifier", verifier),
        ];
        assert_eq!(fixture.token(&form).await.0, 400);
        assert_eq!(fixture.who(tokens["access_token"].as_str().expect("a token")).await, Err(401));
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_makes_no_code_good_again() {
    let (fixture, mut alice, client, _, _) = connected().await;
    let code = fixture.log_in(&mut alice, &client, WEB).await.get("code").to_owned();
    fixture.clock.set(fixture.clock.now().minus(Duration::from_mins(10)));
    assert_eq!(fixture.redeem(&client, WEB, &code).await.0, 400, "nobody knows how old it is");
}

#[tokio::test]
async fn code_replay_of_one_code_at_once_gives_one_grant_at_most() {
    let (fixture, mut alice, client, _, _) = connected().await;
    let before = fixture.store.grants().await.expect("grants").len();
    let code = fixture.log_in(&mut alice, &client, WEB).await.get("code").to_owned();
    let tries = (0..8).map(|_| fixture.redeem(&client, WEB, &code));
    let answers = futures_util::future::join_all(tries).await;
    assert!(answers.iter().filter(|(status, _)| *status == 200).count() <= 1);
    assert_eq!(fixture.store.grants().await.expect("grants").len(), before + 1);
}

#[tokio::test]
async fn an_old_code_is_worthless() {
    let (fixture, mut alice, client, _, _) = connected().await;
    let code = fixture.log_in(&mut alice, &client, WEB).await.get("code").to_owned();
    fixture.clock.advance(Duration::from_secs(60));
    assert_eq!(fixture.redeem(&client, WEB, &code).await.0, 400);
}

#[tokio::test]
async fn redirect_tampering_ends_on_our_own_page() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    for tampered in [
        EVIL,
        "https://client.example/callback/",
        "https://client.example/callback?next=evil",
        "https://client.example.evil.example/callback",
        "https://client.example:8443/callback",
        "http://client.example/callback",
        "https://client.example/callback/../x",
        "javascript:alert(1)",
        "",
    ] {
        let changes = if tampered.is_empty() { vec![("client_id", "unknown")] } else { vec![] };
        let redirect = if tampered.is_empty() { WEB } else { tampered };
        let page = alice.open(fixture.authorize(&client, redirect, &changes)).await;
        assert_eq!((page.status.as_u16(), page.location()), (400, None), "{tampered}");
        assert!(page.text.contains("cannot be used"));
    }
    let page = alice.open(fixture.authorize(&client, WEB, &[]) + "&redirect_uri=" + EVIL).await;
    assert_eq!((page.status.as_u16(), page.location()), (400, None), "a second address beside the good one");
}

#[tokio::test]
async fn open_redirector_nobody_is_sent_to_a_strangers_address_without_their_own_doing() {
    let fixture = Fixture::new().await;
    let evil = fixture.client(EVIL).await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.open(fixture.authorize(&evil, EVIL, &[("response_type", "token")])).await;
    assert_eq!((page.status.as_u16(), page.location()), (400, None));
    assert!(page.text.contains("evil.example"), "a link that says where it leads");
    let local = fixture.client("http://localhost/cb").await;
    let page = alice.open(fixture.authorize(&local, "http://localhost:5/cb", &[("response_type", "token")])).await;
    assert_eq!(Answer::of(&page).param("error").as_deref(), Some("unsupported_response_type"));
}

#[tokio::test]
async fn pkce_downgrade_is_refused_at_both_endpoints() {
    let fixture = Fixture::new().await;
    let client = fixture.client("http://localhost/cb").await;
    let redirect = "http://localhost:5/cb";
    let mut alice = UserAgent::new("alice", "secret");
    for (name, value) in [
        ("code_challenge", ""),
        ("code_challenge_method", ""),
        ("code_challenge_method", "plain"),
        ("code_challenge_method", "s256"),
        ("code_challenge", "short"),
        ("code_challenge", "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!"),
    ] {
        let page = alice.open(fixture.authorize(&client, redirect, &[(name, value)])).await;
        assert_eq!(Answer::of(&page).param("error").as_deref(), Some("invalid_request"), "{name}={value}");
    }
    // The challenge itself, sent as a verifier, would do for `plain`.
    let code = fixture.log_in(&mut alice, &client, redirect).await.get("code").to_owned();
    let challenge = challenge_of(VERIFIER);
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", &*client),
        ("redirect_uri", redirect),
        ("code", &*code),
        ("code_verifier", &*challenge),
    ];
    assert_eq!(fixture.token(&form).await.0, 400);
}

#[tokio::test]
async fn mix_up_every_answer_names_the_issuer_that_the_metadata_names() {
    let fixture = Fixture::new().await;
    let client = fixture.client("http://localhost/cb").await;
    let redirect = "http://localhost:5/cb";
    let metadata = fixture.http.get(format!("{}/.well-known/oauth-authorization-server", fixture.url)).send().await;
    let metadata: serde_json::Value = metadata.expect("an answer").json().await.expect("json");
    assert_eq!(metadata["authorization_response_iss_parameter_supported"], true);
    let issuer = metadata["issuer"].as_str().expect("an issuer").to_owned();
    let mut alice = UserAgent::new("alice", "secret");
    let url = fixture.authorize(&client, redirect, &[]);
    let good = alice.go(&url, &fixture.known(), Decision::Allow).await;
    let denied = alice.go(&url, &fixture.known(), Decision::Deny).await;
    let wrong = alice.open(fixture.authorize(&client, redirect, &[("resource", "https://other.example/mcp")])).await;
    for page in [good, denied, wrong] {
        let answer = Answer::of(&page);
        assert_eq!(answer.param("iss"), Some(issuer.clone()), "{}", answer.0);
        assert_eq!(answer.param("state").as_deref(), Some("client-state"));
    }
}

#[tokio::test]
async fn csrf_on_consent_a_form_of_another_browser_or_another_request_is_refused() {
    let fixture = Fixture::new().await;
    let (client, evil) = (fixture.client(WEB).await, fixture.client(EVIL).await);
    let (mut alice, mut mallory) = (UserAgent::new("alice", "secret"), UserAgent::new("mallory", "x"));
    let honest = alice.open(fixture.authorize(&client, WEB, &[])).await.form("/oauth/consent");
    let theirs = mallory.open(fixture.authorize(&evil, EVIL, &[])).await.form("/oauth/consent");
    let forged: [Form; 4] = [
        // Mallory's own form, sent by a page of theirs through alice's browser.
        decided(theirs.clone(), Decision::Allow),
        // Alice's token with Mallory's request.
        decided(honest.clone(), Decision::Allow).with("query", &theirs.fields["query"]),
        // No token at all.
        decided(honest.clone(), Decision::Allow).with("token", ""),
        // A token that was good for the page of the account.
        decided(honest, Decision::Allow).with(
            "token",
            &alice.open(format!("{}/account", fixture.url)).await.form("/account/login").fields["token"],
        ),
    ];
    for form in forged {
        let page = alice.send(&form).await;
        assert_eq!((page.status.as_u16(), page.location()), (403, None));
    }
    assert_eq!(
        fixture
            .store
            .logins_under_way(crate::tests::oauth::fixture::START.minus(Duration::from_hours(24)))
            .await
            .expect("a number"),
        0
    );
}

#[tokio::test]
async fn csrf_on_consent_a_cross_site_form_is_refused_whatever_it_carries() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let form = decided(alice.open(fixture.authorize(&client, WEB, &[])).await.form("/oauth/consent"), Decision::Allow);
    let cookies: Vec<String> = alice.cookies.iter().map(|((_, name), value)| format!("{name}={value}")).collect();
    let send = |site: &'static str| {
        let request = fixture.http.post(form.action.clone()).header("cookie", cookies.join("; "));
        let request = request.header("sec-fetch-site", site).form(&form.fields);
        async move { request.send().await.expect("an answer").status().as_u16() }
    };
    assert_eq!(send("cross-site").await, 403);
    assert_eq!(send("same-site").await, 403);
    assert_eq!(send("same-origin").await, 303);
}

#[tokio::test]
async fn csrf_on_callback_a_login_ends_in_the_browser_that_began_it_or_not_at_all() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    // Mallory begins a login and lures alice to what Forgejo would answer to it.
    let (mut alice, mut mallory) = (UserAgent::new("alice", "secret"), UserAgent::new("alice", "secret"));
    alice.open(format!("{}/account", fixture.url)).await;
    let sent = agreed(&fixture, &mut mallory, &client).await;
    let back = back_from_forgejo(&fixture, &mut mallory, sent).await;
    let page = alice.open(&back).await;
    assert_eq!((page.status.as_u16(), page.location()), (400, None));
    assert!(page.text.contains("not begun in this browser"));
    let page = UserAgent::new("x", "x").open(&back).await;
    assert_eq!(page.status, 400, "nor in one without any cookie");
    let page = mallory.open(&back).await;
    assert_eq!(Answer::of(&page).address(), WEB, "it was not used up by those who could not use it");
    let again = mallory.open(&back).await;
    assert_eq!((again.status.as_u16(), again.location()), (400, None), "and it is there once only");
}

#[tokio::test]
async fn csrf_on_callback_a_code_of_another_login_is_refused_by_pkce() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (mut alice, mut mallory) = (UserAgent::new("alice", "secret"), UserAgent::new("alice", "secret"));
    let theirs = agreed(&fixture, &mut mallory, &client).await;
    let theirs = back_from_forgejo(&fixture, &mut mallory, theirs).await;
    let hers = agreed(&fixture, &mut alice, &client).await;
    let hers = back_from_forgejo(&fixture, &mut alice, hers).await;
    let part = |url: &str, name: &str| {
        let url = url::Url::parse(url).expect("an address");
        url.query_pairs().find(|(key, _)| key == name).expect("there").1.into_owned()
    };
    // Her own state with Mallory's code from Forgejo.
    let injected = hers.replace(&part(&hers, "code"), &part(&theirs, "code"));
    let page = alice.open(&injected).await;
    assert_eq!((page.status.as_u16(), page.location()), (502, None));
    assert!(page.text.contains("The login failed"));
    assert!(fixture.store.grants().await.expect("grants").is_empty());
}

#[tokio::test]
async fn a_login_that_takes_longer_than_ten_minutes_is_over() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let sent = agreed(&fixture, &mut alice, &client).await;
    let back = back_from_forgejo(&fixture, &mut alice, sent).await;
    fixture.clock.advance(Duration::from_mins(10));
    let page = alice.open(&back).await;
    assert_eq!((page.status.as_u16(), page.location()), (400, None));
    assert!(page.text.contains("ten minutes"));
}

#[tokio::test]
async fn clickjacking_no_page_may_be_framed_cached_or_named_to_other_sites() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let addresses = [
        fixture.authorize(&client, WEB, &[]),
        fixture.authorize("unknown", WEB, &[]),
        format!("{}/account", fixture.url),
        format!("{}/", fixture.url),
        format!("{}/oauth/callback", fixture.url),
    ];
    for address in addresses {
        let page = alice.open(&address).await;
        assert_eq!(page.header("x-frame-options"), "DENY", "{address}");
        let policy = page.header("content-security-policy");
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("default-src 'none'"), "{policy}");
        assert!(!policy.contains("script") && !page.text.contains("<script"));
        assert_eq!(page.header("referrer-policy"), "no-referrer");
        assert_eq!(page.header("cache-control"), "no-store");
        assert_eq!(page.header("x-content-type-options"), "nosniff");
        assert!(page.header("permissions-policy").contains("camera=(), "));
        assert_eq!(page.header("strict-transport-security"), "", "nothing that http could keep");
        // A client's window must hear of the outcome.
        let opener = if address.contains("/oauth/") { "" } else { "same-origin" };
        assert_eq!(page.header("cross-origin-opener-policy"), opener, "{address}");
        assert_eq!(page.header("access-control-allow-origin"), "", "no other site may read it");
    }
}

#[tokio::test]
async fn what_a_client_calls_itself_cannot_become_part_of_the_page() {
    let fixture = Fixture::new().await;
    let name = "<img src=x onerror=alert(1)>\"'&";
    let metadata = json!({"client_name": name, "redirect_uris": [WEB], "token_endpoint_auth_method": "none"});
    let (_, registered) = fixture.register(&metadata).await;
    let client = registered["client_id"].as_str().expect("an id");
    let page =
        UserAgent::new("alice", "secret").open(fixture.authorize(client, WEB, &[("state", "\"><script>")])).await;
    assert_eq!(page.status, 200);
    assert!(!page.text.contains("<img") && !page.text.contains("<script"), "{}", page.text);
}

#[tokio::test]
async fn token_in_query_is_no_token() {
    let (fixture, _, _, access, _) = connected().await;
    for query in [format!("access_token={access}"), format!("token={access}")] {
        let response = fixture.http.get(format!("{}/mcp?{query}", fixture.url)).send().await.expect("an answer");
        assert_eq!(response.status(), 401);
    }
}

#[tokio::test]
async fn refused_audience_a_token_for_another_service_is_neither_given_nor_taken() {
    let (fixture, mut alice, client, _, refresh) = connected().await;
    let local = fixture.client("http://localhost/cb").await;
    let page = alice
        .open(fixture.authorize(&local, "http://localhost:5/cb", &[("resource", "https://other.example/mcp")]))
        .await;
    assert_eq!(Answer::of(&page).param("error").as_deref(), Some("invalid_target"));
    let form = [
        ("grant_type", "refresh_token"),
        ("client_id", &*client),
        ("refresh_token", &*refresh),
        ("resource", "https://other.example/"),
    ];
    let (status, refused) = fixture.token(&form).await;
    assert_eq!((status, &refused["error"]), (400, &json!("invalid_target")));
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 200, "and nothing was used up");
    // Forgejo's own token, and a refresh token, are no access tokens.
    let forgejos = fixture.forge.with(|state| state.issue_pair(1)).expect("a pair");
    let forgejos: serde_json::Value = serde_json::from_str(&forgejos).expect("json");
    assert_eq!(fixture.who(forgejos["access_token"].as_str().expect("a token")).await, Err(401));
    assert_eq!(fixture.who(&refresh).await, Err(401));
}

#[tokio::test]
async fn stolen_refresh_token_used_after_its_owner_ends_the_family() {
    let (fixture, _, client, access, stolen) = connected().await;
    let (_, tokens) = fixture.refresh(&client, &stolen).await;
    let (second, next) = (tokens["access_token"].clone(), tokens["refresh_token"].clone());
    assert!(fixture.who(second.as_str().expect("a token")).await.is_ok());
    fixture.clock.advance(Duration::from_mins(5));
    let (status, refused) = fixture.refresh(&client, &stolen).await;
    assert_eq!((status, &refused["error"]), (400, &json!("invalid_grant")));
    for token in [access.as_str(), second.as_str().expect("a token")] {
        assert_eq!(fixture.who(token).await, Err(401));
    }
    assert_eq!(fixture.refresh(&client, next.as_str().expect("a token")).await.0, 400);
}

#[tokio::test]
async fn stolen_refresh_token_the_owners_own_double_use_within_a_minute_is_none() {
    let (fixture, _, client, _, refresh) = connected().await;
    let answers = futures_util::future::join_all((0..5).map(|_| fixture.refresh(&client, &refresh))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    fixture.clock.advance(Duration::from_secs(59));
    let (status, tokens) = fixture.refresh(&client, &refresh).await;
    assert_eq!(status, 200);
    for (_, tokens) in answers.iter().chain([&(status, tokens)]) {
        assert!(fixture.who(tokens["access_token"].as_str().expect("a token")).await.is_ok());
    }
}

#[tokio::test]
async fn stolen_refresh_token_in_the_hands_of_another_client_is_worthless_and_harmless() {
    let (fixture, _, client, access, refresh) = connected().await;
    let evil = fixture.client(EVIL).await;
    assert_eq!(fixture.refresh(&evil, &refresh).await.0, 400);
    assert!(fixture.who(&access).await.is_ok());
    assert_eq!(fixture.refresh(&client, &refresh).await.0, 200);
}

#[tokio::test]
async fn another_clients_revocation_is_refused_and_ones_own_ends_everything() {
    let (fixture, _, client, access, refresh) = connected().await;
    let evil = fixture.client(EVIL).await;
    let revoke = |client: &str, token: &str| {
        let form = [("client_id", client.to_owned()), ("token", token.to_owned())];
        let request = fixture.http.post(format!("{}/oauth/revoke", fixture.url)).form(&form);
        async move { request.send().await.expect("an answer").status().as_u16() }
    };
    assert_eq!(revoke(&evil, &refresh).await, 400);
    assert_eq!(revoke(&evil, &access).await, 400);
    assert!(fixture.who(&access).await.is_ok());
    assert_eq!(revoke(&client, "fjb_rt_unknown").await, 200, "an unknown token is as good as revoked (RFC 7009)");
    let (_, tokens) = fixture.refresh(&client, &refresh).await;
    let second = tokens["access_token"].as_str().expect("a token").to_owned();
    assert_eq!(revoke(&client, &access).await, 200);
    assert_eq!(fixture.who(&access).await, Err(401), "an access token goes alone");
    assert!(fixture.who(&second).await.is_ok());
    assert_eq!(revoke(&client, tokens["refresh_token"].as_str().expect("a token")).await, 200);
    assert_eq!(fixture.who(&second).await, Err(401), "a refresh token takes its family along");
}

#[tokio::test]
async fn a_client_that_refreshes_in_a_loop_is_slowed_down_and_keeps_its_family() {
    let (fixture, _, client, access, mut refresh) = connected().await;
    let mut refused = 0;
    for _ in 0..40 {
        let (status, tokens) = fixture.refresh(&client, &refresh).await;
        match status {
            200 => tokens["refresh_token"].as_str().expect("a token").clone_into(&mut refresh),
            429 => refused += 1,
            other => panic!("{other} {tokens}"),
        }
    }
    assert!(refused > 0);
    assert!(fixture.who(&access).await.is_ok());
}

#[tokio::test]
async fn guessing_is_slowed_down_and_honest_refreshes_from_the_same_address_are_not() {
    let terms = crate::tests::oauth::fixture::Terms {
        rates: crate::auth::rates::Rates { registrations: 100, logins: 100, documents: 100, failures: 5 },
        ..crate::tests::oauth::fixture::Terms::default()
    };
    let fixture = Fixture::with(terms).await;
    let client = fixture.client(WEB).await;
    let (_, mut refresh) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    for _ in 0..5 {
        assert_eq!(fixture.refresh(&client, "fjb_rt_guess").await.0, 400);
    }
    let guess = [("grant_type", "refresh_token"), ("client_id", &*client), ("refresh_token", "fjb_rt_guess")];
    let response =
        fixture.http.post(format!("{}/oauth/token", fixture.url)).form(&guess).send().await.expect("an answer");
    assert_eq!(response.status(), 429);
    assert!(response.headers().contains_key("retry-after"));
    for _ in 0..20 {
        let (status, tokens) = fixture.refresh(&client, &refresh).await;
        assert_eq!(status, 200);
        refresh = tokens["refresh_token"].as_str().expect("a token").to_owned();
    }
}

#[tokio::test]
async fn stolen_refresh_token_a_family_that_is_revoked_in_the_middle_of_an_exchange_gives_nothing() {
    use crate::auth::token::{AccessToken, RefreshToken};
    use crate::store::{Exchange, NewPair, NoPair, Verdict};
    let (fixture, _, _, _, refresh) = connected().await;
    let token = RefreshToken::parse(&refresh).expect("a token");
    // Between the look at the row and the exchange:
    let now = fixture.clock.now();
    let row = fixture.store.find_refresh_token(&token.name(), now).await.expect("read").expect("there");
    assert!(fixture.store.revoke_grant(&row.grant, "operator", now).await.expect("revoked"));
    let (access, next) = (AccessToken::mint(&mut rand::rngs::SysRng), RefreshToken::mint(&mut rand::rngs::SysRng));
    let (access, next) = (access.expect("a token"), next.expect("a token"));
    let pair = NewPair {
        access: access.hash(),
        access_ends: now.plus(Duration::from_mins(1)),
        access_scopes: None,
        refresh: next.hash(),
        family: token.family().hash(),
        refresh_ends: now.plus(Duration::from_mins(1)),
    };
    let exchange = Exchange {
        token: &token.hash(),
        grant: &row.grant,
        pair: &pair,
        network: "192.0.2.0/24",
        keep: Duration::from_mins(6),
        now,
    };
    let exchanged = fixture.store.exchange_refresh_token(&exchange, |_| Verdict::Next { settle: false }).await;
    assert_eq!(exchanged.expect("no trouble"), Err(NoPair::Gone));
    assert!(fixture.store.find_token(&access.hash()).await.expect("read").is_none());
}
