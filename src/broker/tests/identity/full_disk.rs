//! A full disk takes nothing back: what was answered is there after a restart, for each kind of write.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::auth::principal::{GrantId, Scopes};
use crate::auth::restriction::Restrictions;
use crate::auth::source::Source;
use crate::auth::token::{RefreshName, TokenHash};
use crate::forge::vault::Sealed;
use crate::store::{
    Code, Consent, Credential, Exchange, FinishedLogin, GrantUse, Login, NewGrant, NewPair, RegisteredClient,
    SessionDigest, SessionRecord, Store, StoreError, Used, Verdict, Visit,
};
use wire::clock::UnixTime;
use wire::message::{Label, TenantId};

use crate::tests::identity::fixture::START;

/// Everything that one round of writes is about, made before the disk is full.
const ROUNDS: u8 = 12;
/// Names the directory to the test within its own mounts.
const DIRECTORY: &str = "FULL_DISK_DIRECTORY";

/// Something that was answered with success.
#[derive(Debug)]
enum Answered {
    Registered(String),
    Login(TokenHash),
    Code(TokenHash),
    Redeemed(TokenHash, TokenHash),
    Refreshed(TokenHash, TokenHash),
    Revoked(GrantId),
    Opened(SessionDigest),
    Ended(SessionDigest),
    Touched(SessionDigest),
    Settings(SessionDigest),
    GrantUsed(GrantId),
    Credential(String),
    Finished(TenantId, TokenHash),
    Granted(GrantId),
    TokenForgotten(TokenHash),
}

const LATER: UnixTime = UnixTime::from_secs(START.secs() + 60);

fn hash(round: u8, what: &str) -> TokenHash {
    let mut hash = [round; 32];
    for (to, from) in hash.iter_mut().skip(1).zip(what.bytes()) {
        *to = from;
    }
    TokenHash(hash)
}

fn digest(round: u8, what: &str) -> SessionDigest {
    SessionDigest(hash(round, what).0)
}

fn used(round: u8) -> GrantUse {
    GrantUse { grant: grant(round, "live"), at: LATER, network: None }
}

fn visit(round: u8) -> Visit {
    let browser = hash(round, "browser");
    Visit { key: hash(round, "visit"), browser, tenant: tenant(round), ends: LATER }
}

fn login(round: u8, state: &str, browser: TokenHash) -> Login {
    let request = Some("query".to_owned());
    Login { state: hash(round, state), browser, request, consented: None, created_at: START }
}

fn somewhere() -> Source {
    Source::of_address([192, 0, 2, 1].into())
}

fn tenant(round: u8) -> TenantId {
    TenantId::new(u64::from(round) + 1).expect("an id")
}

fn grant(round: u8, what: &str) -> GrantId {
    GrantId::new(format!("{what}-{round}"))
}

fn credential(round: u8, filling: u8) -> Credential {
    let sealed = |bytes: u8| Sealed { key_id: "key".to_owned(), bytes: vec![bytes; 60] };
    Credential {
        id: format!("credential-{round}"),
        tenant: tenant(round),
        access: sealed(filling),
        refresh: Some(sealed(filling)),
        expires_at: Some(START.plus(Duration::from_hours(1))),
        application: None,
        barred_since: None,
    }
}

fn code(round: u8, what: &str) -> Code {
    Code {
        hash: hash(round, what),
        client_id: "client".to_owned(),
        client_name: "Client".to_owned(),
        redirect_uri: "http://localhost/".to_owned(),
        challenge: "challenge".to_owned(),
        tenant: tenant(round),
        credential_id: format!("credential-{round}"),
        scopes: Scopes { write: true },
        created_at: START,
        needs_key: false,
        redeemed: None,
    }
}

fn pair(round: u8, access: &str, refresh: &str) -> NewPair {
    let ends = START.plus(Duration::from_hours(1));
    NewPair {
        access: hash(round, access),
        access_ends: ends,
        access_scopes: None,
        refresh: hash(round, refresh),
        family: hash(round, &refresh.replace("refresh", "family")),
        refresh_ends: ends,
    }
}

fn session(round: u8, what: &str) -> SessionRecord {
    SessionRecord {
        digest: digest(round, what),
        grant: grant(round, "live"),
        tenant: tenant(round),
        protocol_version: "2025-06-18".to_owned(),
        initialize: "{}".to_owned(),
        answer: "{}".to_owned(),
        created_at: START,
        last_used_at: START,
        settings: "{}".to_owned(),
    }
}

fn personal(round: u8, what: &str) -> NewGrant {
    NewGrant {
        grant: grant(round, what),
        client_id: "cli".to_owned(),
        tenant: tenant(round),
        login: Label::parse(format!("user{round}")).expect("a label"),
        scopes: Scopes { write: true },
        restrictions: Restrictions::default(),
        credential_id: format!("{what}-credential-{round}"),
        credential: Sealed { key_id: "key".to_owned(), bytes: vec![1; 60] },
        token: hash(round, what),
        created_at: START,
        expires_at: LATER,
    }
}

async fn prepare(store: &Store, round: u8) -> Result<(), StoreError> {
    let login = Label::parse(format!("user{round}")).expect("a label");
    store.put_oauth_credential(&credential(round, 1), &login, START).await?;
    store.insert_code(&code(round, "live-code")).await?;
    let first = pair(round, "live-access", "live-refresh");
    assert!(store.redeem_code(&code(round, "live-code"), &grant(round, "live"), &first, START).await?);
    store.insert_code(&code(round, "waiting-code")).await?;
    store.insert_login(&self::login(round, "back", hash(round, "browser")), somewhere()).await?;
    store.insert_grant(&personal(round, "doomed")).await?;
    for what in ["ends", "used", "set"] {
        store.insert_session(&session(round, what)).await?;
    }
    Ok(())
}

/// Tries each kind of write once; what was answered, and how many were refused.
async fn write_all(store: &Store, round: u8) -> (Vec<Answered>, Vec<StoreError>) {
    let client = RegisteredClient {
        client_id: format!("registered-{round}"),
        name: "Client".to_owned(),
        redirects: vec!["http://localhost/".to_owned()],
        secret: None,
    };
    let login = login(round, "state", hash(0, "browser"));
    let consent = Consent {
        tenant: tenant(round),
        client_id: "client".to_owned(),
        client_name: "Client".to_owned(),
        redirect: "http://localhost".to_owned(),
        scopes: Scopes { write: true },
    };
    let (back, visit) = (hash(round, "back"), visit(round));
    let finished = FinishedLogin { state: &back, visit: &visit, former: None, consent: Some(&consent), code: None };
    let (waiting, redeemed) = (code(round, "waiting-code"), pair(round, "redeemed-access", "redeemed-refresh"));
    let (refresh, next) = (hash(round, "live-refresh"), pair(round, "next-access", "next-refresh"));
    let fresh = credential(round, 2);
    let set = [(digest(round, "set"), r#"{"level":"debug"}"#.to_owned())];
    let exchange = Exchange {
        token: &refresh,
        grant: &grant(round, "live"),
        pair: &next,
        network: "192.0.2.0/24",
        keep: Duration::from_mins(6),
        now: LATER,
    };
    let outcomes = [
        (
            store.insert_client(&client, &[round; 32], somewhere(), START).await,
            Answered::Registered(client.client_id.clone()),
        ),
        (store.insert_login(&login, somewhere()).await, Answered::Login(login.state)),
        (store.insert_code(&code(round, "new-code")).await, Answered::Code(hash(round, "new-code"))),
        (
            store.redeem_code(&waiting, &grant(round, "redeemed"), &redeemed, LATER).await.map(drop),
            Answered::Redeemed(waiting.hash, redeemed.access),
        ),
        (
            store.exchange_refresh_token(&exchange, |_| Verdict::Next { settle: false }).await.map(drop),
            Answered::Refreshed(refresh, next.refresh),
        ),
        (
            store.revoke_grant(&grant(round, "doomed"), "test", LATER).await.map(drop),
            Answered::Revoked(grant(round, "doomed")),
        ),
        (store.insert_session(&session(round, "opened")).await, Answered::Opened(digest(round, "opened"))),
        (store.end_session(&digest(round, "ends"), "test", LATER).await, Answered::Ended(digest(round, "ends"))),
        (store.touch_sessions(&[(digest(round, "used"), LATER)]).await, Answered::Touched(digest(round, "used"))),
        (store.keep_session_settings(&set).await, Answered::Settings(digest(round, "set"))),
        (store.touch_grants(&[used(round)]).await, Answered::GrantUsed(grant(round, "live"))),
        (
            store.replace_credential(&credential(round, 1), &fresh, LATER).await.map(drop),
            Answered::Credential(fresh.id.clone()),
        ),
        (store.finish_login(&finished, START).await.map(drop), Answered::Finished(tenant(round), hash(round, "visit"))),
        (store.insert_grant(&personal(round, "granted")).await, Answered::Granted(grant(round, "granted"))),
        (
            store.forget_access_token(&hash(round, "live-access")).await,
            Answered::TokenForgotten(hash(round, "live-access")),
        ),
    ];
    let (mut answered, mut refused) = (Vec::new(), Vec::new());
    for (outcome, what) in outcomes {
        match outcome {
            Ok(()) => answered.push(what),
            Err(e) => refused.push(e),
        }
    }
    (answered, refused)
}

async fn is_there(store: &Store, answered: &Answered) -> Result<bool, StoreError> {
    let record = async |digest| store.find_session(digest).await;
    Ok(match answered {
        Answered::Registered(id) => store.find_client(id).await?.is_some(),
        Answered::Login(state) => store.find_login(state, &hash(0, "browser")).await?.is_some(),
        Answered::Code(code) => store.find_code(code).await?.is_some(),
        Answered::Redeemed(code, access) => {
            let redeemed = store.find_code(code).await?.is_some_and(|code| code.redeemed.is_some());
            redeemed && store.find_token(access).await?.is_some()
        }
        Answered::Refreshed(old, new) => {
            let name = |hash: &TokenHash| RefreshName { hash: *hash, family: *hash, ends: START };
            let used =
                store.find_refresh_token(&name(old), START).await?.is_some_and(|row| row.used == Used::At(LATER));
            used && store.find_refresh_token(&name(new), START).await?.is_some()
        }
        Answered::Revoked(grant) => store.find_grant(grant).await?.is_some_and(|row| row.revoked),
        Answered::Opened(digest) => record(digest).await?.is_some(),
        Answered::Ended(digest) => record(digest).await?.is_none(),
        Answered::Touched(digest) => record(digest).await?.is_some_and(|record| record.last_used_at == LATER),
        Answered::Settings(digest) => record(digest).await?.is_some_and(|record| record.settings.contains("debug")),
        Answered::GrantUsed(id) => {
            store.grants().await?.iter().any(|grant| grant.id == *id && grant.last_used_at == Some(LATER))
        }
        Answered::Credential(id) => store.find_credential(id).await?.is_some_and(|found| found.access.bytes == [2; 60]),
        Answered::Finished(tenant, visit) => {
            !store.consents_of(*tenant).await?.is_empty() && store.find_visit(visit, START).await?.is_some()
        }
        Answered::Granted(grant) => store.find_grant(grant).await?.is_some(),
        Answered::TokenForgotten(token) => store.find_token(token).await?.is_none(),
    })
}

/// Fills the file system, and gives `spare` bytes of it back.
fn fill(dir: &Path, spare: u64) -> PathBuf {
    let ballast = dir.join("ballast");
    let mut file = std::fs::File::create(&ballast).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
    let length = file.metadata().expect("readable").len();
    file.set_len(length.saturating_sub(spare)).expect("shorter");
    ballast
}

/// The test itself, on a file system of 8 MiB.
async fn on_a_small_disk(dir: &Path) {
    let database = dir.join("broker.db");
    let store = Store::open(&database).await.expect("a store");
    for round in 0..ROUNDS {
        prepare(&store, round).await.expect("there is room");
    }
    store.close().await;
    let store = Store::open(&database).await.expect("a store");
    store.probe().await.expect("there is room");
    let ballast = fill(dir, 256 * 1024);
    let (mut answered, mut refused) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS - 2 {
        let (good, bad) = write_all(&store, round).await;
        answered.extend(good);
        refused.extend(bad);
    }
    println!("on a full disk {} writes were answered and {} refused", answered.len(), refused.len());
    assert!(!answered.is_empty() && !refused.is_empty(), "the disk fills in the middle");
    assert!(refused.iter().all(StoreError::is_full), "{refused:?}");
    assert!(matches!(store.probe().await, Err(StoreError::Full(_))), "and the store says so");
    std::fs::remove_file(ballast).expect("room");
    store.probe().await.expect("it goes on by itself");
    let (good, bad) = write_all(&store, ROUNDS - 1).await;
    assert!(bad.is_empty(), "each kind of write goes on by itself");
    answered.extend(good);
    store.close().await;
    let store = Store::open(&database).await.expect("a store");
    let mut lost = Vec::new();
    for answered in &answered {
        if !is_there(&store, answered).await.expect("readable") {
            lost.push(answered);
        }
    }
    assert!(lost.is_empty(), "{} of {} were answered and are not there: {lost:?}", lost.len(), answered.len());
}

#[tokio::test]
async fn what_was_answered_on_a_full_disk_is_there_after_a_restart() {
    const NAME: &str = "what_was_answered_on_a_full_disk_is_there_after_a_restart";
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        return on_a_small_disk(Path::new(&dir)).await;
    }
    if !harness::supervised::root_or_skip(NAME) {
        return;
    }
    // In mounts of its own, which end with the process.
    let dir = tempfile::tempdir().expect("a directory");
    let script = format!(r#"mount -t tmpfs -o size=8m tmpfs "${DIRECTORY}" && exec "$0" --exact "$1" --nocapture"#);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).arg(std::env::current_exe().expect("this program"));
    command.arg(format!("tests::identity::full_disk::{NAME}")).env(DIRECTORY, dir.path());
    let output = command.output().expect("unshare(1)");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}");
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
}
