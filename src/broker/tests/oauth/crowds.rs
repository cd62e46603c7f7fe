//! However many networks fill what everybody shares, one that has less of it than they finds room.

use std::time::Duration;

use crate::auth::source::Source;
use crate::auth::token::TokenHash;
use crate::oauth::config::Bounds;
use crate::store::{Login, RegisteredClient};
use serde_json::json;

use crate::tests::oauth::fixture::{Answer, Fixture, START, Terms, WEB};
use harness::user_agent::{Decision, UserAgent, decided};

/// Of all logins, and of all unused clients: as much for each of 17 networks, and of 100.
const ALL: u32 = 1700;

async fn crowded() -> Fixture {
    let bounds = Bounds { logins: i64::from(ALL), unused_clients: i64::from(ALL) };
    Fixture::with(Terms { bounds, ..Terms::default() }).await
}

/// A host of a network that is against everybody.
fn hostile(network: u32) -> Source {
    let [_, _, high, low] = network.to_be_bytes();
    Source::of_address([198, high, low, 7].into())
}

/// Where the requests of these tests come from.
fn honest() -> Source {
    Source::of_address([127, 0, 0, 1].into())
}

/// Key `n` of a row that a hostile network makes.
fn key(n: u32) -> TokenHash {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    TokenHash(bytes)
}

impl Fixture {
    /// A login begins there, as one does that came through the form; whether there was room.
    async fn hostile_login(&self, n: u32, from: Source) -> bool {
        let now = self.clock.now();
        let expired = START.minus(Duration::from_hours(1));
        let is_full = self.store.logins_under_way(expired).await.expect("a number") >= i64::from(ALL);
        if is_full && !self.store.make_room_for_login(from, expired).await.expect("a look") {
            return false;
        }
        let login = Login { state: key(n), browser: key(n), request: None, consented: None, created_at: now };
        self.store.insert_login(&login, from).await.expect("stored");
        true
    }

    async fn hostile_client(&self, n: u32, from: Source) -> bool {
        let now = self.clock.now();
        let is_full = self.store.unused_clients().await.expect("a number") >= i64::from(ALL);
        if is_full && !self.store.make_room_for_client(from, now.minus(Duration::from_mins(30))).await.expect("a look")
        {
            return false;
        }
        let client = RegisteredClient {
            client_id: format!("hostile-{n}"),
            name: "x".to_owned(),
            redirects: vec![WEB.to_owned()],
            secret: None,
        };
        self.store.insert_client(&client, &key(n).0, from, now).await.expect("stored");
        true
    }
}

#[tokio::test]
async fn an_honest_login_begins_and_ends_while_17_or_100_networks_flood_the_logins() {
    for networks in [17, 100] {
        let fixture = crowded().await;
        let client = fixture.client(WEB).await;
        for n in 0..ALL {
            assert!(fixture.hostile_login(n, hostile(n % networks)).await);
        }
        for n in ALL..ALL + networks {
            assert!(!fixture.hostile_login(n, hostile(n % networks)).await, "who has the most gets no more");
        }
        let mut alice = UserAgent::new("alice", "secret");
        let consent = alice.open(fixture.authorize(&client, WEB, &[])).await;
        let sent = alice.send(&decided(consent.form("/oauth/consent"), Decision::Allow)).await;
        let to = sent.location().expect("to Forgejo");
        assert!(to.as_str().starts_with(&fixture.forgejo), "{to}");
        // The flood goes on while she is there, from as many networks again.
        for n in 2 * ALL..3 * ALL {
            fixture.hostile_login(n, hostile(networks + n % networks)).await;
        }
        let page = alice.go(to.as_str(), &fixture.known(), Decision::Allow).await;
        assert_eq!(Answer::of(&page).address(), WEB, "{networks} networks");
        let under_way = fixture.store.logins_under_way(START.minus(Duration::from_hours(1))).await.expect("a number");
        assert!(under_way <= i64::from(ALL), "{under_way}");
    }
}

#[tokio::test]
async fn an_honest_client_registers_and_stays_while_17_or_100_networks_flood_the_registrations() {
    for networks in [17, 100] {
        let fixture = crowded().await;
        for n in 0..ALL + networks {
            assert_eq!(fixture.hostile_client(n, hostile(n % networks)).await, n < ALL);
        }
        let client = fixture.client(WEB).await;
        for n in 2 * ALL..3 * ALL {
            fixture.hostile_client(n, hostile(networks + n % networks)).await;
        }
        fixture.connect(&mut UserAgent::new("alice", "secret"), &client, WEB).await;
        assert!(fixture.store.unused_clients().await.expect("a number") <= i64::from(ALL));
    }
}

#[tokio::test]
async fn a_network_that_holds_the_most_makes_room_from_its_own_and_only_by_what_is_not_at_its_login() {
    let fixture = crowded().await;
    for n in 0..ALL {
        assert!(fixture.hostile_client(n, honest()).await);
    }
    let metadata = json!({"client_name": "One more", "redirect_uris": [WEB], "token_endpoint_auth_method": "none"});
    assert_eq!(fixture.register(&metadata).await.0, 503, "all of its own may still be at their logins");
    fixture.clock.advance(Duration::from_mins(31));
    assert_eq!(fixture.register(&metadata).await.0, 201);
    assert!(fixture.store.find_client("hostile-0").await.expect("read").is_none(), "the oldest of its own made room");
    assert!(fixture.store.find_client("hostile-1").await.expect("read").is_some());
    assert!(fixture.hostile_client(ALL, hostile(1)).await, "another network always finds room");
}
