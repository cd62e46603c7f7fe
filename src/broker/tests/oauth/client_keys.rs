//! Clients that show at the token endpoint that they have their key.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::oauth::keys::{Algorithm, KeySet, NotVerified};
use crate::tests::oauth::documents::{CALLBACK, DocumentServer, ask, document};
use crate::tests::oauth::fixture::{Fixture, VERIFIER};
use crate::tests::oauth::signer::{SIGNED, Signer, decoded};
use harness::https::{Answer, Server};
use harness::user_agent::UserAgent;

const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A client with a document and keys at a server, both of which a test may change.
struct World {
    server: Server,
    fixture: Fixture,
    alice: UserAgent,
    published: Arc<Mutex<Published>>,
    made: AtomicUsize,
}

struct Published {
    document: Value,
    keys: Value,
    keys_status: &'static str,
    /// Paths, in the order in which they were asked for.
    asked: VecDeque<&'static str>,
}

impl World {
    /// `change` makes a document of one whose keys are at an address.
    async fn new(keys: &[&Signer], change: impl Fn(&mut Value)) -> Self {
        let keys = json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()});
        let (document, asked) = (Value::Null, VecDeque::new());
        let published = Published { document, keys, keys_status: "200 OK", asked };
        let published = Arc::new(Mutex::new(published));
        let shared = Arc::clone(&published);
        let server = Server::answering(move |_, request| {
            let mut published = shared.lock();
            let head = "content-type: application/json\r\ncache-control: max-age=3600";
            let (path, status, body) = if request.starts_with("get /keys.json") {
                ("keys", published.keys_status, published.keys.to_string())
            } else {
                ("document", "200 OK", published.document.to_string())
            };
            published.asked.push_back(path);
            Answer { head: format!("{status}\r\n{head}"), body, trickles: None }
        })
        .await;
        let mut described = document_of(server.port);
        change(&mut described);
        published.lock().document = described;
        let fixture = server.fixture().await;
        let alice = UserAgent::new("alice", "secret");
        Self { server, fixture, alice, published, made: AtomicUsize::new(0) }
    }

    async fn code(&mut self) -> String {
        self.fixture.log_in(&mut self.alice, &self.server.id(), CALLBACK).await.get("code").to_owned()
    }

    /// Good claims, of a name of their own.
    fn claims(&self) -> Value {
        let (id, now) = (self.server.id(), self.fixture.clock.now().secs());
        let name = format!("assertion {}", self.made.fetch_add(1, Ordering::SeqCst));
        json!({"iss": id, "sub": id, "aud": self.fixture.url, "iat": now, "exp": now + 60, "jti": name})
    }

    fn assertion(&self, signer: &Signer, algorithm: &str) -> String {
        signer.jwt(&json!({"alg": algorithm}), &self.claims())
    }

    /// A request of this client, with this assertion or without one.
    async fn token(&self, what: &[(&str, &str)], assertion: Option<&str>) -> (u16, Value) {
        self.post("token", what, assertion).await
    }

    async fn post(&self, endpoint: &str, what: &[(&str, &str)], assertion: Option<&str>) -> (u16, Value) {
        let id = self.server.id();
        let mut form = vec![("client_id", id.as_str())];
        form.extend(what);
        if let Some(assertion) = assertion {
            form.extend([("client_assertion_type", JWT_BEARER), ("client_assertion", assertion)]);
        }
        let request = self.fixture.http.post(format!("{}/oauth/{endpoint}", self.fixture.url)).form(&form);
        let response = request.send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }

    async fn redeem(&self, code: &str, assertion: Option<&str>) -> (u16, Value) {
        self.token(&redeeming(code), assertion).await
    }

    async fn refresh(&self, token: &str, assertion: Option<&str>) -> (u16, Value) {
        self.token(&[("grant_type", "refresh_token"), ("refresh_token", token)], assertion).await
    }

    /// What was asked for since the last time.
    fn asked(&self) -> Vec<&'static str> {
        self.published.lock().asked.drain(..).collect()
    }
}

fn redeeming(code: &str) -> [(&str, &str); 4] {
    let (grant, address) = (("grant_type", "authorization_code"), ("redirect_uri", CALLBACK));
    [grant, address, ("code", code), ("code_verifier", VERIFIER)]
}

/// As a client publishes it that signs and does nothing else.
fn document_of(port: u16) -> Value {
    let mut document = document(port);
    document["token_endpoint_auth_method"] = "private_key_jwt".into();
    document["jwks_uri"] = format!("https://localhost:{port}/keys.json").into();
    document
}

fn refresh_token(tokens: &Value) -> &str {
    tokens["refresh_token"].as_str().expect("a token")
}

/// Refused for want of the key, in words with these among them.
fn is_refused((status, body): &(u16, Value), why: &str) -> bool {
    let said = body["error_description"].as_str().unwrap_or_default();
    *status == 401 && body["error"] == "invalid_client" && said.contains(why)
}

#[tokio::test]
async fn what_a_client_with_a_key_was_given_is_worth_nothing_without_the_key() {
    let signer = Signer::p256("a");
    let mut world = World::new(&[&signer], |_| {}).await;
    let code = world.code().await;
    assert!(is_refused(&world.redeem(&code, None).await, "client_assertion is missing"));
    let (status, tokens) = world.redeem(&code, Some(&world.assertion(&signer, "ES256"))).await;
    assert_eq!(status, 200, "the code was not used up: {tokens}");
    assert!(is_refused(&world.redeem(&code, None).await, "missing"), "a replay without the key ends nothing");
    let refresh = refresh_token(&tokens);
    assert!(is_refused(&world.refresh(refresh, None).await, "client_assertion is missing"));
    let (status, next) = world.refresh(refresh, Some(&world.assertion(&signer, "ES256"))).await;
    assert_eq!(status, 200, "{next}");
    let access = next["access_token"].as_str().expect("a token");
    for token in [access, refresh_token(&next)] {
        assert!(is_refused(&world.post("revoke", &[("token", token)], None).await, "client_assertion is missing"));
    }
    assert!(world.fixture.who(access).await.is_ok());
    let assertion = world.assertion(&signer, "ES256");
    assert_eq!(world.post("revoke", &[("token", refresh_token(&next))], Some(&assertion)).await.0, 200);
    assert_eq!(world.fixture.who(access).await, Err(401));
}

#[tokio::test]
async fn every_algorithm_that_is_offered_is_taken_and_the_document_may_name_its_own() {
    let metadata = async |fixture: &Fixture| -> Value {
        let request = fixture.http.get(format!("{}/.well-known/oauth-authorization-server", fixture.url));
        request.send().await.expect("an answer").json().await.expect("json")
    };
    for (algorithm, signer) in [
        ("ES256", Signer::p256("a")),
        ("EdDSA", Signer::ed25519("a")),
        ("Ed25519", Signer::ed25519("a")),
        ("PS256", Signer::rsa("a")),
        ("RS256", Signer::rsa("a")),
    ] {
        let mut world = World::new(&[], |document| {
            document["jwks"] = json!({"keys": [signer.jwk()]});
            document["jwks_uri"] = Value::Null;
            document["token_endpoint_auth_signing_alg"] = algorithm.into();
        })
        .await;
        let metadata = metadata(&world.fixture).await;
        for endpoint in ["token", "revocation"] {
            let listed = |what: &str| metadata[format!("{endpoint}_endpoint_auth_{what}")].to_string();
            assert!(listed("methods_supported").contains("private_key_jwt"), "{metadata}");
            assert!(listed("signing_alg_values_supported").contains(algorithm), "{metadata}");
        }
        let code = world.code().await;
        let (status, tokens) = world.redeem(&code, Some(&world.assertion(&signer, algorithm))).await;
        assert_eq!(status, 200, "{algorithm}: {tokens}");
    }
    // The key could verify it, and the client has said that it signs otherwise.
    let signer = Signer::rsa("a");
    let mut world = World::new(&[&signer], |d| d["token_endpoint_auth_signing_alg"] = "PS256".into()).await;
    let code = world.code().await;
    assert!(is_refused(&world.redeem(&code, Some(&world.assertion(&signer, "RS256"))).await, "must be signed with"));
}

#[tokio::test]
async fn an_assertion_with_anything_wrong_in_it_shows_nothing_and_uses_up_nothing() {
    let (signer, stranger) = (Signer::p256("a"), Signer::p256("a"));
    let mut world = World::new(&[&signer], |_| {}).await;
    let code = world.code().await;
    world.asked();
    let now = world.fixture.clock.now().secs();
    let wrong: [(&str, &str, Value); 16] = [
        ("iss and sub", "iss", "https://localhost/client.json".into()),
        ("iss and sub", "sub", "https://localhost/client.json".into()),
        ("aud of", "aud", "https://other.example".into()),
        ("aud of", "aud", json!([world.fixture.url, "https://other.example"])),
        ("aud of", "aud", json!([])),
        ("has expired", "exp", (now - 61).into()),
        ("ten minutes ahead", "exp", (now + 700).into()),
        ("must be a signed JWT", "exp", 1e300.into()),
        ("not good yet", "nbf", (now + 120).into()),
        ("not good yet", "iat", (now + 120).into()),
        ("must be a signed JWT", "iss", Value::Null),
        ("must be a signed JWT", "sub", Value::Null),
        ("must be a signed JWT", "aud", Value::Null),
        ("must be a signed JWT", "exp", Value::Null),
        ("must be a signed JWT", "exp", "tomorrow".into()),
        ("must be a signed JWT", "jti", Value::Null),
    ];
    for (why, claim, value) in wrong {
        let mut claims = world.claims();
        claims[claim] = value;
        let refused = world.redeem(&code, Some(&signer.jwt(&json!({"alg": "ES256"}), &claims))).await;
        assert!(is_refused(&refused, why), "{claims}: {refused:?}");
    }
    for (why, header) in [
        ("must be signed with", json!({"alg": "none"})),
        ("must be signed with", json!({"alg": "HS256"})),
        ("must be signed with", json!({"alg": "ES384"})),
        ("critical", json!({"alg": "ES256", "crit": ["b64"], "b64": false})),
        ("must be a signed JWT", json!({"alg": ["ES256"]})),
    ] {
        let refused = world.redeem(&code, Some(&signer.jwt(&header, &world.claims()))).await;
        assert!(is_refused(&refused, why), "{header}: {refused:?}");
    }
    let good = world.assertion(&signer, "ES256");
    let (unsigned, _) = good.rsplit_once('.').expect("three parts");
    for broken in ["x", "x.y", "x.y.z", &format!("{unsigned}."), &format!("{good}=")] {
        assert!(is_refused(&world.redeem(&code, Some(broken)).await, "client_assertion"), "{broken}");
    }
    let typed =
        [redeeming(&code).as_slice(), &[("client_assertion", &good), ("client_assertion_type", "saml")]].concat();
    assert!(is_refused(&world.token(&typed, None).await, "client_assertion_type must be"));
    assert!(world.asked().iter().all(|path| *path != "document"), "what could not be good is not worth a fetch");
    for (why, header) in [("not signed with", json!({"alg": "ES256"})), ("no key", json!({"alg": "RS256"}))] {
        let refused = world.redeem(&code, Some(&stranger.jwt(&header, &world.claims()))).await;
        assert!(is_refused(&refused, why), "{refused:?}");
    }
    let (status, tokens) = world.redeem(&code, Some(&good)).await;
    assert_eq!(status, 200, "{tokens}");
}

#[tokio::test]
async fn an_assertion_is_good_once_for_any_endpoint_and_by_either_spelling_of_the_audience() {
    let signer = Signer::p256("a");
    let mut world = World::new(&[&signer], |_| {}).await;
    let code = world.code().await;
    let once = world.assertion(&signer, "ES256");
    let (_, tokens) = world.redeem(&code, Some(&once)).await;
    let refresh = refresh_token(&tokens).to_owned();
    assert!(is_refused(&world.refresh(&refresh, Some(&once)).await, "was used before"));
    assert!(is_refused(&world.post("revoke", &[("token", &refresh)], Some(&once)).await, "was used before"));
    for audience in ["", "/", "/oauth/token"] {
        let mut claims = world.claims();
        claims["aud"] = format!("{}{audience}", world.fixture.url).into();
        // The client's id may be left to the assertion (RFC 7521 section 4.2).
        let assertion = signer.jwt(&json!({"alg": "ES256"}), &claims);
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh.as_str()),
            ("client_assertion_type", JWT_BEARER),
            ("client_assertion", assertion.as_str()),
        ];
        let (status, tokens) = world.fixture.token(&form).await;
        assert_eq!(status, 200, "{audience}: {tokens}");
    }
}

#[tokio::test]
async fn a_key_that_is_not_known_yet_is_looked_for_once_a_minute() {
    let (former, next) = (Signer::p256("former"), Signer::p256("next"));
    let mut world = World::new(&[&former], |_| {}).await;
    let code = world.code().await;
    let (_, tokens) = world.redeem(&code, Some(&world.assertion(&former, "ES256"))).await;
    let mut refresh = refresh_token(&tokens).to_owned();
    assert_eq!(world.asked(), ["document", "keys"]);
    world.published.lock().keys = json!({"keys": [next.jwk()]});
    world.fixture.clock.advance(Duration::from_secs(61));
    let (status, tokens) = world.refresh(&refresh, Some(&world.assertion(&next, "ES256"))).await;
    assert_eq!(status, 200, "{tokens}");
    tokens["refresh_token"].as_str().expect("a token").clone_into(&mut refresh);
    assert_eq!(world.asked(), ["document", "keys"], "though both were fresh");
    for _ in 0..3 {
        let unknown = Signer::p256("unknown");
        let refused = world.refresh(&refresh, Some(&world.assertion(&unknown, "ES256"))).await;
        assert!(is_refused(&refused, "no key with this kid"), "{refused:?}");
    }
    assert_eq!(world.asked(), [""; 0], "strangers cannot make the broker ask more often");
}

#[tokio::test]
async fn keys_that_cannot_be_had_now_refuse_nothing_for_good() {
    let signer = Signer::p256("a");
    let mut world = World::new(&[&signer], |_| {}).await;
    let code = world.code().await;
    world.published.lock().keys_status = "503 Busy";
    let assertion = world.assertion(&signer, "ES256");
    let (status, refused) = world.redeem(&code, Some(&assertion)).await;
    assert_eq!((status, &refused["error"]), (503, &json!("temporarily_unavailable")));
    world.published.lock().keys_status = "200 OK";
    assert_eq!(world.redeem(&code, Some(&assertion)).await.0, 200, "the very same request");
}

#[tokio::test]
async fn keys_are_fetched_from_where_a_document_may_be_and_from_nowhere_else() {
    for (address, why) in [
        ("https://127.0.0.1:PORT/keys.json", "not on the public internet"),
        ("https://169.254.169.254/keys.json", "not on the public internet"),
        ("http://localhost:PORT/keys.json", "jwks_uri must be https"),
        ("https://localhost:PORT/a/../keys.json", "jwks_uri must be https"),
    ] {
        let world = World::new(&[], |document| {
            let port = document["client_id"].as_str().and_then(|id| id.split([':', '/']).nth(4)).expect("a port");
            document["jwks_uri"] = address.replace("PORT", port).into();
        })
        .await;
        let page = ask(&world.fixture, &world.server.id()).await;
        assert!(page.status == 400 && page.text.contains(why), "{address}: {}", page.text);
        assert_eq!(world.asked(), ["document"]);
    }
}

#[tokio::test]
async fn a_client_that_also_comes_without_its_key_is_held_to_it_once_it_has_shown_it() {
    let signer = Signer::rsa("a");
    // As ChatGPT's document was in August 2026.
    let chatgpt = |document: &mut Value| {
        document["token_endpoint_auth_methods_supported"] = json!(["none", "private_key_jwt"]);
        document["token_endpoint_auth_signing_alg"] = "RS256".into();
    };
    let mut world = World::new(&[&signer], chatgpt).await;
    let code = world.code().await;
    let (status, tokens) = world.redeem(&code, None).await;
    assert_eq!(status, 200, "{tokens}");
    assert_eq!(world.refresh(refresh_token(&tokens), None).await.0, 200);
    let code = world.code().await;
    let (status, tokens) = world.redeem(&code, Some(&world.assertion(&signer, "RS256"))).await;
    assert_eq!(status, 200, "{tokens}");
    assert!(is_refused(&world.refresh(refresh_token(&tokens), None).await, "client_assertion is missing"));
    let assertion = world.assertion(&signer, "RS256");
    assert_eq!(world.refresh(refresh_token(&tokens), Some(&assertion)).await.0, 200);
}

#[tokio::test]
async fn a_document_says_in_several_ways_whether_its_client_comes_without_the_key() {
    let signer = Signer::p256("a");
    let both = json!(["private_key_jwt", "none"]);
    let shapes = [
        (false, json!({"token_endpoint_auth_method": null, "token_endpoint_auth_methods_supported": both})),
        (false, json!({"token_endpoint_auth_method": "none", "token_endpoint_auth_methods_supported": both})),
        (false, json!({"token_endpoint_auth_methods_supported": both, "token_endpoint_auth_signing_alg": "ES512"})),
        (false, json!({"token_endpoint_auth_methods_supported": both, "jwks_uri": null})),
        (true, json!({"token_endpoint_auth_methods_supported": null})),
        (true, json!({"token_endpoint_auth_methods_supported": ["private_key_jwt", "client_secret_basic"]})),
        (
            true,
            json!({"token_endpoint_auth_method": null, "token_endpoint_auth_methods_supported": ["private_key_jwt"]}),
        ),
    ];
    for (n, (is_held, shape)) in shapes.into_iter().enumerate() {
        let mut world = World::new(&[&signer], |document| {
            for (member, value) in shape.as_object().expect("members") {
                document[member] = value.clone();
            }
        })
        .await;
        let code = world.code().await;
        let outcome = world.redeem(&code, None).await;
        assert_eq!(outcome.0, if is_held { 401 } else { 200 }, "{shape}: {outcome:?}");
        // Where both are good the key is taken too.
        if is_held || n < 2 {
            let code = world.code().await;
            let outcome = world.redeem(&code, Some(&world.assertion(&signer, "ES256"))).await;
            assert_eq!(outcome.0, 200, "{shape}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn a_client_without_a_key_gets_nowhere_with_an_assertion_and_nobody_with_two_proofs() {
    let signer = Signer::p256("a");
    let mut world = World::new(&[&signer], |d| d["token_endpoint_auth_method"] = "none".into()).await;
    let code = world.code().await;
    let assertion = world.assertion(&signer, "ES256");
    assert!(is_refused(&world.redeem(&code, Some(&assertion)).await, "no key that is known here"));
    let registered = world.fixture.client(CALLBACK).await;
    let claims = json!({"iss": registered, "sub": registered, "aud": world.fixture.url,
        "exp": world.fixture.clock.now().secs() + 60, "jti": "1"});
    let assertion = signer.jwt(&json!({"alg": "ES256"}), &claims);
    let proof = [("client_assertion_type", JWT_BEARER), ("client_assertion", assertion.as_str())];
    let named = [proof.as_slice(), &[("client_id", registered.as_str()), ("token", "x")]].concat();
    let both = [named.as_slice(), &[("client_secret", "x")]].concat();
    let revoke = async |form: &[(&str, &str)]| {
        let request = world.fixture.http.post(format!("{}/oauth/revoke", world.fixture.url)).form(form);
        let response = request.send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.expect("json"))
    };
    assert!(is_refused(&revoke(&named).await, "no key that is known here"));
    let (status, body): (u16, Value) = revoke(&both).await;
    assert_eq!((status, &body["error"]), (400, &json!("invalid_request")));
    assert_eq!(world.redeem(&code, None).await.0, 200);
}

#[test]
fn a_signature_is_that_of_its_own_key_type_and_algorithm_only() {
    let (p256, ed25519, rsa) = (Signer::p256("ec"), Signer::ed25519("ed"), Signer::rsa("rsa"));
    let set = |keys: Vec<Value>| KeySet::of(json!({"keys": keys}));
    let all = set(vec![p256.jwk(), ed25519.jwk(), rsa.jwk()]).expect("keys");
    let [text, signature] = SIGNED;
    let verify = |key, algorithm, signature: &[u8]| all.verify(key, algorithm, text.as_bytes(), signature);
    assert_eq!(verify(Some("rsa"), Algorithm::Rs256, &decoded(signature)), Ok(()), "RFC 7515, appendix A.2");
    assert_eq!(verify(None, Algorithm::Rs256, &decoded(signature)), Ok(()), "no name: any that it could be");
    assert_eq!(verify(Some("rsa"), Algorithm::Ps256, &decoded(signature)), Err(NotVerified::Signature));
    assert_eq!(verify(Some("ec"), Algorithm::Rs256, &decoded(signature)), Err(NotVerified::UnknownKey));
    let signature = p256.sign("ES256", text);
    assert_eq!(verify(Some("ec"), Algorithm::Es256, &signature), Ok(()));
    assert_eq!(verify(Some("ec"), Algorithm::Ed25519, &signature), Err(NotVerified::UnknownKey));
    assert_eq!(verify(Some("ed"), Algorithm::Ed25519, &signature), Err(NotVerified::Signature));
    assert_eq!(verify(Some("other"), Algorithm::Es256, &signature), Err(NotVerified::UnknownKey));
    // What is for something else, of no known kind, broken, or everybody's is no key; the others of its set are.
    let changed = |member: &str, value: Value| {
        let mut key = p256.jwk();
        key[member] = value;
        key
    };
    let useless = [
        changed("use", "enc".into()),
        changed("key_ops", json!(["sign"])),
        changed("alg", "ES384".into()),
        changed("crv", "P-384".into()),
        changed("x", "AAAA".into()),
        changed("kty", "oct".into()),
        changed("d", "AAAA".into()),
        changed("kid", 1.into()),
        json!("x"),
    ];
    for key in useless {
        assert!(set(vec![key.clone()]).is_err(), "{key}");
        assert!(set(vec![key, rsa.jwk()]).is_ok());
    }
}
