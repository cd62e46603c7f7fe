//! From a client's first question to its tokens, and on.

use std::time::Duration;

use serde_json::{Value, json};

use crate::tests::oauth::fixture::{Answer, Fixture, Terms, WEB};
use harness::user_agent::{Decision, UserAgent};

#[tokio::test]
async fn a_client_registers_its_user_logs_in_and_agrees_and_it_gets_tokens_that_work() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.open(fixture.authorize(&client, WEB, &[])).await;
    assert_eq!(page.status, 200);
    for truth in ["Test client", "client.example", &fixture.forgejo, "read and change", "Nobody: it registered itself"]
    {
        assert!(page.text.contains(truth), "{truth} is missing:\n{}", page.text);
    }
    assert!(
        !fixture.forge.with(|state| state.requests.iter().any(|seen| seen.path.contains("oauth"))),
        "nothing goes to Forgejo before consent"
    );
    let answer = fixture.log_in(&mut alice, &client, WEB).await;
    assert_eq!(answer.address(), WEB);
    assert_eq!(answer.param("state").as_deref(), Some("client-state"));
    assert_eq!(answer.param("iss").as_deref(), Some(fixture.url.as_str()));
    let (status, tokens) = fixture.redeem(&client, WEB, answer.get("code")).await;
    assert_eq!(status, 200, "{tokens}");
    assert_eq!((&tokens["token_type"], &tokens["expires_in"]), (&json!("Bearer"), &json!(3600)));
    assert_eq!(tokens["scope"], "forgejo:read forgejo:write");
    let access = tokens["access_token"].as_str().expect("a token");
    assert!(access.starts_with("fjb_at_") && tokens["refresh_token"].as_str().expect("a token").starts_with("fjb_rt_"));
    assert_eq!(fixture.who(access).await.as_deref(), Ok("alice forgejo:read forgejo:write"));
}

#[tokio::test]
async fn forgejo_is_asked_for_the_configured_scopes_with_pkce_and_a_state_of_its_own() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.open(fixture.authorize(&client, WEB, &[])).await;
    let sent = alice.send(&harness::user_agent::decided(page.form("/oauth/consent"), Decision::Allow)).await;
    let to = Answer::of(&sent);
    assert!(to.0.as_str().starts_with(&format!("{}/login/oauth/authorize?", fixture.forgejo)));
    assert_eq!(to.param("scope").as_deref(), Some("write:user write:repository read:organization"));
    assert_eq!(to.param("code_challenge_method").as_deref(), Some("S256"));
    assert_eq!(to.param("redirect_uri"), Some(format!("{}/oauth/callback", fixture.url)));
    let state = to.param("state").expect("a state");
    assert!(state.starts_with("fjb_st_") && state != "client-state");
    assert_ne!(
        to.param("code_challenge"),
        Some(crate::tests::oauth::fixture::challenge_of(crate::tests::oauth::fixture::VERIFIER))
    );
}

#[tokio::test]
async fn who_chooses_only_reading_gives_a_token_that_only_reads() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.go(&fixture.authorize(&client, WEB, &[]), &fixture.known(), Decision::ReadOnly).await;
    let (status, tokens) = fixture.redeem(&client, WEB, Answer::of(&page).get("code")).await;
    assert_eq!((status, &tokens["scope"]), (200, &json!("forgejo:read")));
    let access = tokens["access_token"].as_str().expect("a token");
    assert_eq!(fixture.who(access).await.as_deref(), Ok("alice forgejo:read"));
}

#[tokio::test]
async fn a_client_of_oauth_2_1_need_not_name_its_address_again() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let code = fixture.log_in(&mut UserAgent::new("alice", "secret"), &client, WEB).await.get("code").to_owned();
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", client.as_str()),
        ("code", &code),
        ("code_verifier", crate::tests::oauth::fixture::VERIFIER),
    ];
    assert_eq!(fixture.token(&form).await.0, 200);
}

#[tokio::test]
async fn a_form_that_asks_for_more_than_the_client_did_gives_no_more() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.open(fixture.authorize(&client, WEB, &[("scope", "forgejo:read")])).await;
    assert!(!page.text.contains("read and change"));
    let form = page.form("/oauth/consent").with("access", "write").with("decision", "approve");
    let sent = alice.send(&form).await;
    let page = alice.go(Answer::of(&sent).0.as_str(), &fixture.known(), Decision::Allow).await;
    let (_, tokens) = fixture.redeem(&client, WEB, Answer::of(&page).get("code")).await;
    assert_eq!(tokens["scope"], "forgejo:read");
}

#[tokio::test]
async fn the_consent_page_names_what_the_brokers_own_rights_at_forgejo_reach() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let page = UserAgent::new("alice", "secret").open(fixture.authorize(&client, WEB, &[])).await;
    let text = page.text.split_whitespace().collect::<Vec<_>>().join(" ");
    let repositories = "repositories with their files, branches, pull requests, releases, wikis and hooks";
    assert!(text.contains(&format!("what you can: {repositories}, and your account. It can delete, too.")), "{text}");
    assert!(text.contains("It can read organisations and teams."), "{text}");
    assert!(!text.contains("packages") && !text.contains("issues"), "{text}");
    let page =
        UserAgent::new("bob", "secret").open(fixture.authorize(&client, WEB, &[("scope", "forgejo:read")])).await;
    let text = page.text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(&format!("{repositories}, your account, and organisations and teams. It changes nothing.")));
}

#[tokio::test]
async fn the_consent_page_tells_a_known_user_what_forgejo_holds_them_to() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    fixture.log_in(&mut alice, &client, WEB).await;
    // Forgejo keeps to what she agreed to at her first login, which allowed more.
    fixture.forge.with(|state| "write:user write:issue write:package".clone_into(&mut state.grants[0].scope));
    fixture.log_in(&mut alice, &client, WEB).await;
    let page = alice.open(fixture.authorize(&client, WEB, &[("prompt", "consent")])).await;
    let text = page.text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("what you can: issues, packages, and your account."), "{text}");
    // No scope at all means everything there, and where she allowed only reading there is no writing to agree to.
    for (held, sign) in
        [("openid", "notifications, and your account. It can delete"), ("read:user", "your account. It changes")]
    {
        fixture.forge.with(|state| held.clone_into(&mut state.grants[0].scope));
        fixture.log_in(&mut alice, &client, WEB).await;
        let page = alice.open(fixture.authorize(&client, WEB, &[("prompt", "consent")])).await;
        let text = page.text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(sign), "{held}: {text}");
        assert_eq!(text.contains("read and change"), held == "openid", "{held}: {text}");
    }
}

#[tokio::test]
async fn where_nothing_can_be_changed_at_forgejo_no_writing_is_offered_or_given() {
    let scopes = &["read:user", "read:repository"];
    let fixture = Fixture::with(crate::tests::oauth::fixture::Terms { scopes, ..Default::default() }).await;
    let metadata = fixture.http.get(format!("{}/.well-known/oauth-authorization-server", fixture.url)).send().await;
    let metadata: Value = metadata.expect("an answer").json().await.expect("json");
    assert_eq!(metadata["scopes_supported"], json!(["forgejo:read"]));
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.open(fixture.authorize(&client, WEB, &[])).await;
    assert!(!page.text.contains("read and change"), "{}", page.text);
    let answer = fixture.log_in(&mut alice, &client, WEB).await;
    let (status, tokens) = fixture.redeem(&client, WEB, answer.get("code")).await;
    assert_eq!((status, &tokens["scope"]), (200, &json!("forgejo:read")));
}

#[tokio::test]
async fn consent_is_remembered_for_the_user_the_client_and_the_place() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    fixture.log_in(&mut alice, &client, WEB).await;
    let again = alice.open(fixture.authorize(&client, WEB, &[])).await;
    assert!(again.location().is_some_and(|to| to.as_str().starts_with(&fixture.forgejo)), "straight on to Forgejo");
    let asked = |page: &harness::user_agent::Page| page.text.contains("/oauth/consent");
    assert!(asked(&alice.open(fixture.authorize(&client, WEB, &[("prompt", "consent")])).await));
    let other = fixture.client("https://client.example/other").await;
    assert!(asked(&alice.open(fixture.authorize(&other, "https://client.example/other", &[])).await));
    let mut stranger = UserAgent::new("bob", "secret");
    assert!(asked(&stranger.open(fixture.authorize(&client, WEB, &[])).await));
}

#[tokio::test]
async fn a_program_on_the_persons_machine_is_asked_for_each_time_whatever_its_port() {
    let fixture = Fixture::new().await;
    let client = fixture.client("http://127.0.0.1/callback").await;
    let mut alice = UserAgent::new("alice", "secret");
    let answer = fixture.log_in(&mut alice, &client, "http://127.0.0.1:51234/callback").await;
    assert_eq!(answer.address(), "http://127.0.0.1:51234/callback");
    let page = alice.open(fixture.authorize(&client, "http://127.0.0.1:51235/callback", &[])).await;
    assert!(page.text.contains("a program on this computer") && page.text.contains("alice"));
    let tenant = crate::tests::oauth::fixture::alices_number();
    assert!(fixture.store.consents_of(tenant).await.expect("read").is_empty(), "nothing is promised for the next time");
}

#[tokio::test]
async fn refreshing_gives_a_new_pair_and_keeps_the_family() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (access, refresh) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    fixture.clock.advance(Duration::from_mins(59));
    let (status, tokens) = fixture.refresh(&client, &refresh).await;
    assert_eq!(status, 200, "{tokens}");
    let second = tokens["access_token"].as_str().expect("a token");
    assert_ne!(second, access);
    assert_ne!(tokens["refresh_token"], json!(refresh));
    assert!(fixture.who(&access).await.is_ok(), "the old access token ends by itself");
    fixture.clock.advance(Duration::from_mins(1));
    assert_eq!(fixture.who(&access).await, Err(401));
    assert!(fixture.who(second).await.is_ok());
    let grants = fixture.store.grants().await.expect("grants");
    assert_eq!(grants.len(), 1, "one family");
}

#[tokio::test]
async fn a_refresh_may_ask_for_less() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (_, refresh) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    let form = [
        ("grant_type", "refresh_token"),
        ("client_id", &*client),
        ("refresh_token", &*refresh),
        ("scope", "forgejo:read"),
    ];
    let (_, tokens) = fixture.token(&form).await;
    assert_eq!(tokens["scope"], "forgejo:read");
    let who = fixture.who(tokens["access_token"].as_str().expect("a token")).await;
    assert_eq!(who.as_deref(), Ok("alice forgejo:read"));
    let (_, tokens) = fixture.refresh(&client, tokens["refresh_token"].as_str().expect("a token")).await;
    assert_eq!(tokens["scope"], "forgejo:read forgejo:write", "the family itself is not less");
}

#[tokio::test]
async fn a_refresh_token_lives_on_as_long_as_it_is_used() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let (_, mut refresh) = fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
    for _ in 0..3 {
        fixture.clock.advance(Duration::from_hours(29 * 24));
        let (status, tokens) = fixture.refresh(&client, &refresh).await;
        assert_eq!(status, 200, "{tokens}");
        refresh = tokens["refresh_token"].as_str().expect("a token").to_owned();
    }
    fixture.clock.advance(Duration::from_hours(30 * 24));
    let (status, refused) = fixture.refresh(&client, &refresh).await;
    assert_eq!((status, &refused["error"]), (400, &json!("invalid_grant")));
}

#[tokio::test]
async fn a_confidential_client_shows_its_secret_in_the_header_or_the_form() {
    let fixture = Fixture::new().await;
    let metadata = json!({"client_name": "Confidential", "redirect_uris": [WEB]});
    let (_, registered) = fixture.register(&metadata).await;
    assert_eq!(registered["client_secret_expires_at"], 0);
    let (client, secret) =
        (registered["client_id"].as_str().expect("an id"), registered["client_secret"].as_str().expect("a secret"));
    assert!(secret.starts_with("fjb_cs_"));
    let mut alice = UserAgent::new("alice", "secret");
    let code = fixture.log_in(&mut alice, client, WEB).await.get("code").to_owned();
    let form = |more: &[(&'static str, String)]| {
        let mut form = vec![
            ("grant_type", "authorization_code".to_owned()),
            ("code", code.clone()),
            ("redirect_uri", WEB.to_owned()),
            ("code_verifier", crate::tests::oauth::fixture::VERIFIER.to_owned()),
        ];
        form.extend_from_slice(more);
        form
    };
    let post = |form: Vec<(&'static str, String)>, basic: Option<(String, String)>| {
        let mut request = fixture.http.post(format!("{}/oauth/token", fixture.url)).form(&form);
        if let Some((id, secret)) = basic {
            request = request.basic_auth(id, Some(secret));
        }
        async move { request.send().await.expect("an answer") }
    };
    let id = ("client_id", client.to_owned());
    assert_eq!(post(form(std::slice::from_ref(&id)), None).await.status(), 401, "without the secret");
    let wrong = post(form(&[]), Some((client.to_owned(), "fjb_cs_wrong".to_owned()))).await;
    assert_eq!(wrong.status(), 401);
    assert!(wrong.headers()["www-authenticate"].to_str().expect("text").starts_with("Basic"));
    let refused: Value = wrong.json().await.expect("json");
    assert_eq!(refused["error"], "invalid_client");
    let twice = post(form(&[("client_secret", secret.to_owned())]), Some((client.to_owned(), secret.to_owned()))).await;
    assert_eq!(twice.status(), 400, "not in two ways");
    let good = post(form(&[]), Some((client.to_owned(), secret.to_owned()))).await;
    assert_eq!(good.status(), 200, "a failed secret has not used the code up");
    let tokens: Value = good.json().await.expect("json");
    let refresh = ("refresh_token", tokens["refresh_token"].as_str().expect("a token").to_owned());
    let by_form =
        post(vec![("grant_type", "refresh_token".to_owned()), refresh, id, ("client_secret", secret.to_owned())], None)
            .await;
    assert_eq!(by_form.status(), 200);
}

#[tokio::test]
async fn the_person_says_no_and_the_client_is_told() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.go(&fixture.authorize(&client, WEB, &[]), &fixture.known(), Decision::Deny).await;
    let answer = Answer::of(&page);
    assert_eq!(answer.param("error").as_deref(), Some("access_denied"));
    assert_eq!(answer.param("iss").as_deref(), Some(fixture.url.as_str()));
    assert_eq!(answer.param("state").as_deref(), Some("client-state"));
    assert!(fixture.store.consents_of(crate::tests::oauth::fixture::alices_number()).await.expect("read").is_empty());
}

#[tokio::test]
async fn the_person_says_no_at_forgejo_and_the_client_is_told() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.open(fixture.authorize(&client, WEB, &[])).await;
    let mut page = alice.send(&harness::user_agent::decided(page.form("/oauth/consent"), Decision::Allow)).await;
    loop {
        page = match page.location() {
            Some(to) if to.as_str().starts_with(WEB) => break,
            Some(to) => alice.open(to).await,
            None if page.text.contains("/user/login") => {
                alice.send(&page.form("/user/login").with("user_name", "alice").with("password", "secret")).await
            }
            None => alice.send(&page.form("/login/oauth/grant").with("granted", "false")).await,
        };
    }
    assert_eq!(Answer::of(&page).param("error").as_deref(), Some("access_denied"));
}

#[tokio::test]
async fn a_second_login_of_a_user_replaces_forgejos_tokens_for_all_their_clients() {
    let mut fixture = Fixture::new().await;
    let (one, two) = (fixture.client(WEB).await, fixture.client("https://two.example/cb").await);
    let mut alice = UserAgent::new("alice", "secret");
    let (first, _) = fixture.connect(&mut alice, &one, WEB).await;
    let (second, _) = fixture.connect(&mut alice, &two, "https://two.example/cb").await;
    while let Ok(change) = fixture.changes.try_recv() {
        assert!(matches!(change, crate::forge::rotation::Change::Rotated(_)), "{change:?}");
    }
    // Past the life of Forgejo's first pair: the refresh must use the second.
    fixture.clock.advance(Duration::from_mins(58));
    fixture.rotation.sweep().await;
    fixture.clock.advance(Duration::from_mins(1));
    assert!(fixture.who(&first).await.is_ok() && fixture.who(&second).await.is_ok());
    let grants = fixture.store.grants().await.expect("grants");
    assert!(grants.iter().all(|grant| grant.revoked_at.is_none()), "{grants:?}");
}

#[tokio::test]
async fn a_client_from_the_configuration_is_vouched_for_by_the_operator() {
    use crate::oauth::client::{Client, Origin, Proof};
    use crate::oauth::client_name::ClientName;
    use crate::oauth::redirect::{RedirectUri, Schemes};
    let redirect = RedirectUri::parse(WEB, &Schemes::new(Vec::new())).expect("good");
    let client = Client {
        id: "our-bot".to_owned(),
        name: ClientName::of("Our bot"),
        redirects: vec![redirect],
        proof: Proof::None,
        origin: Origin::Configured,
    };
    let fixture =
        Fixture::with(crate::tests::oauth::fixture::Terms { clients: vec![client], ..Default::default() }).await;
    let mut alice = UserAgent::new("alice", "secret");
    let page = alice.open(fixture.authorize("our-bot", WEB, &[])).await;
    assert!(page.text.contains("Our bot") && page.text.contains("The operator of this service"), "{}", page.text);
    let (access, _) = fixture.connect(&mut alice, "our-bot", WEB).await;
    assert!(fixture.who(&access).await.is_ok());
    let page = alice.open(fixture.authorize("our-bot", WEB, &[("code_challenge", "")])).await;
    assert_eq!(Answer::of(&page).param("error").as_deref(), Some("invalid_request"), "its address can be trusted");
}

#[tokio::test]
async fn a_user_has_twenty_connections_through_one_client_and_the_longest_unused_makes_room() {
    let fixture = Fixture::new().await;
    let client = fixture.client(WEB).await;
    let mut alice = UserAgent::new("alice", "secret");
    let mut tokens = Vec::new();
    for _ in 0..20 {
        tokens.push(fixture.connect(&mut alice, &client, WEB).await.0);
        fixture.clock.advance(Duration::from_secs(1));
    }
    assert!(fixture.who(&tokens[0]).await.is_ok());
    fixture.connect(&mut alice, &client, WEB).await;
    assert_eq!(fixture.who(&tokens[0]).await, Err(401));
    assert!(fixture.who(&tokens[1]).await.is_ok());
}

#[tokio::test]
async fn browsers_are_sent_to_forgejos_public_address_and_the_broker_asks_at_its_own() {
    let fixture =
        Fixture::with(Terms { forge_for_browsers: Some("https://git.example/forge"), ..Terms::default() }).await;
    let client = fixture.client(WEB).await;
    let url = fixture.authorize(&client, WEB, &[]);
    let mut user_agent = UserAgent::new("alice", "secret");
    let page = user_agent.go(&url, &[&fixture.url], Decision::Allow).await;
    let to = page.location().expect("a redirect");
    assert!(to.as_str().starts_with("https://git.example/forge/login/oauth/authorize?"), "{to}");
    let asked = fixture.forge.with(|state| state.requests.iter().map(|seen| seen.path.clone()).collect::<Vec<_>>());
    assert_eq!(asked, ["/api/v1/version"], "the look whether it is there");
    let shown = fixture.http.get(&fixture.url).send().await.expect("an answer").text().await.expect("text");
    assert!(shown.contains("https://git.example/forge"), "{shown}");
}
