//! `GET /doctor`: everything that the broker needs is looked at, and what is not as it should be is said with what to do.
//!
//! What only the operator's own rights can see (configuration files, units, the child program) the tool looks at itself.
//! Nothing is changed. Every look has a deadline.

mod named;
mod visibility;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use reqwest::header::WWW_AUTHENTICATE;
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use tokio::time::timeout;
use wire::clock::UnixTime;
use wire::lifecycle;
use wire::message::Enforced;

use crate::admin::Admin;
use crate::admin::api::{Finding, State as Health};
use crate::auth::rates::{CameIn, RateLimits};
use crate::chain::chain;
use crate::forge::api::UpstreamLook;
use crate::store::Sizes;

/// How long one look may take.
const LOOK_WITHIN: Duration = Duration::from_secs(10);
/// Less room than this is worth a word.
const LITTLE_ROOM: u64 = 256 * 1024 * 1024;
/// Clocks that differ by more make tokens end too early or too late.
const CLOCKS_DIFFER: u64 = 60;
const MEBIBYTE: u64 = 1024 * 1024;
/// Descriptors of a child: its three pipes.
const DESCRIPTORS_A_CHILD: usize = 3;

/// What is looked at besides what the operator's requests act on.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// Where clients reach the broker.
    pub(crate) public_url: String,
    /// Whether the broker is registered at Forgejo.
    pub(crate) lets_log_in: bool,
    /// The configured cap on connections.
    pub(crate) connections: usize,
    /// Has seen how requests come in.
    pub(crate) limits: Arc<RateLimits>,
}

fn finding(check: &str, state: Health, found: impl Into<String>, advice: Option<&str>) -> Finding {
    Finding { check: check.to_owned(), state, found: found.into(), advice: advice.map(str::to_owned) }
}

fn good(check: &str, found: impl Into<String>) -> Finding {
    finding(check, Health::Ok, found, None)
}

/// Looks at everything.
pub(super) async fn examine(State(admin): State<Admin>) -> Json<Vec<Finding>> {
    let (store, key, forgejo, supervisor, reached, child) =
        tokio::join!(store(&admin), key(&admin), forgejo(&admin), supervisor(&admin), reached(&admin), child(&admin));
    let mut all = vec![store, key];
    all.extend(forgejo);
    all.extend(cut_off(&admin).await);
    all.extend(named::look(&admin).await);
    all.extend(supervisor);
    all.push(descriptors(&admin));
    all.push(child);
    all.extend(reached);
    Json(all)
}

async fn store(admin: &Admin) -> Finding {
    const ADVICE: &str = "make room on the database's file system, or look at its disk; nothing that must be durable is \
                          answered meanwhile";
    let probed = timeout(LOOK_WITHIN, admin.store.probe()).await;
    match (probed, admin.store.sizes()) {
        (Err(_), _) => finding("store", Health::Fail, "the database does not answer in time", Some(ADVICE)),
        (Ok(Err(e)), _) | (Ok(Ok(())), Err(e)) => finding("store", Health::Fail, chain(&e), Some(ADVICE)),
        (Ok(Ok(())), Ok(Sizes { file, wal, free })) => {
            let found = format!(
                "{}: {} MiB, its log {} MiB, {} MiB of room",
                admin.database.display(),
                file / MEBIBYTE,
                wal / MEBIBYTE,
                free / MEBIBYTE
            );
            if free < LITTLE_ROOM {
                finding("store", Health::Warn, found, Some("make room before the disk is full"))
            } else {
                good("store", found)
            }
        }
    }
}

/// Who must log in again, and why: without a word the operator hears of it from each of them.
async fn cut_off(admin: &Admin) -> Vec<Finding> {
    match admin.rotation.cut_off().await {
        Ok(all) => {
            let told = |(users, why)| {
                let found = format!("{users} users must log in again, because {why}");
                finding("logins", Health::Note, found, Some("tell them; one login brings all their connections back"))
            };
            all.into_iter().map(told).collect()
        }
        Err(e) => vec![finding("logins", Health::Fail, chain(&e), None)],
    }
}

async fn key(admin: &Admin) -> Finding {
    let (file, id) = (admin.vault.file(), admin.vault.key_id());
    if let Some(older) = admin.vault.older_key_id() {
        let found = format!("key {older} is being replaced by {id}");
        let advice = "`forgejo-mcp-brokerctl key rotate` goes on with it; keep the older key's file until then";
        return finding("key", Health::Note, found, Some(advice));
    }
    match admin.store.sealing_keys().await {
        Ok(sealed) => {
            let count: i64 = sealed.iter().map(|(_, credentials)| credentials).sum();
            let found = format!("key {id} in {} seals {count} credentials", file.path.display());
            finding("key", Health::Ok, found, Some("keep a copy of it apart from copies of the database"))
        }
        Err(e) => finding("key", Health::Fail, chain(&e), Some("the database cannot be read; see `store`")),
    }
}

async fn forgejo(admin: &Admin) -> Vec<Finding> {
    let url = admin.forgejo.api_url();
    let (look, date) = admin.forgejo.look().await;
    let reached = match look {
        UpstreamLook::Forgejo(version) => good("forgejo", format!("{url} is Forgejo {version}")),
        UpstreamLook::SignIn => good("forgejo", format!("{url} answers, and tells its version to nobody")),
        UpstreamLook::Other { status, what } if status >= 500 => finding(
            "forgejo",
            Health::Fail,
            format!("Forgejo, or its proxy, answers at {url} with status {status}, {what}"),
            Some("look whether Forgejo runs, and at its log; some shields against crawlers answer like this, too"),
        ),
        UpstreamLook::Other { status, what } => finding(
            "forgejo",
            Health::Fail,
            format!("something in front of Forgejo answers at {url}: status {status}, {what}"),
            Some(
                "let the broker's address or its User-Agent (forgejo-mcp-broker) through whatever shields Forgejo from \
                 crawlers, for /api/ and /login/oauth/",
            ),
        ),
        UpstreamLook::Unreachable(why) => finding(
            "forgejo",
            Health::Fail,
            format!("{url} cannot be reached: {why}"),
            Some("try `curl -v` to it from this machine; look at DNS, the firewall, and certificates (SSL_CERT_FILE)"),
        ),
    };
    let mut all = vec![reached, clock(admin.clock.now(), date)];
    if !admin.surroundings.lets_log_in {
        let advice = "register the broker at Forgejo and set [forgejo] client_id and client_secret_file";
        all.push(finding("login", Health::Note, "nobody can log in: there are operator's tokens only", Some(advice)));
    }
    all
}

/// Ours beside Forgejo's, as far as its answer told it.
fn clock(ours: UnixTime, theirs: Option<UnixTime>) -> Finding {
    let Some(theirs) = theirs else {
        return finding("clock", Health::Note, "nothing to compare it with: Forgejo's answer tells no time", None);
    };
    let differ = ours.secs().abs_diff(theirs.secs());
    if differ > CLOCKS_DIFFER {
        let found = format!("this machine's clock and Forgejo's differ by {differ} s");
        finding("clock", Health::Warn, found, Some("`timedatectl` says whether the clock is synchronised"))
    } else {
        good("clock", format!("within {differ} s of Forgejo's"))
    }
}

/// What the kernel bounds for a user's processes together.
fn limits(enforced: Enforced) -> Finding {
    let kinds =
        [("memory", enforced.memory), ("processes", enforced.pids), ("CPU", enforced.cpu), ("disk", enforced.io)];
    let of = |on: bool| kinds.iter().filter(|kind| kind.1 == on).map(|kind| kind.0).collect::<Vec<_>>().join(", ");
    let missing = of(false);
    if missing.is_empty() {
        return good("limits", format!("a user's processes together are bounded in {}", of(true)));
    }
    let state = if enforced.memory && enforced.pids { Health::Note } else { Health::Warn };
    let advice = "the unit needs Delegate=, and the machine cgroup v2 with these controllers (`cat \
                  /sys/fs/cgroup/cgroup.controllers`); until then each process has its rlimits alone";
    finding("limits", state, format!("not bounded for a user's processes together: {missing}"), Some(advice))
}

async fn supervisor(admin: &Admin) -> Vec<Finding> {
    let status = timeout(LOOK_WITHIN, admin.supervisor.status()).await.ok().and_then(Result::ok);
    let Some(status) = status else {
        let advice = "`systemctl status forgejo-mcp-supervisor.socket forgejo-mcp-supervisor`; [supervisor] socket must name \
                      its socket, and the broker's user must be its broker_user";
        return vec![finding("supervisor", Health::Fail, "it does not answer: no child can be started", Some(advice))];
    };
    let found = format!("{} of at most {} children, of {} users", status.children, status.max_children, status.tenants);
    let mut all = vec![good("supervisor", found)];
    if status.uids_unclean > 0 {
        let found = format!("{} uids are not clean", status.uids_unclean);
        let advice = "`journalctl -u forgejo-mcp-supervisor -p err` names the processes that do not go away";
        all.push(finding("uids", Health::Warn, found, Some(advice)));
    }
    let isolation = status.isolation;
    let parts = [
        (
            "own uid",
            isolation.own_uid,
            Health::Fail,
            "the supervisor runs without root: children can read each other's tokens; start it by its unit",
        ),
        (
            "cgroup",
            isolation.cgroup,
            Health::Warn,
            "memory and processes are bounded by rlimits alone: the unit needs Delegate= and cgroup v2",
        ),
        (
            "landlock",
            isolation.landlock,
            Health::Warn,
            "the kernel has no Landlock (5.13 or later, `lsm=landlock,…`): children open whatever file modes allow",
        ),
        (
            "seccomp",
            isolation.seccomp,
            Health::Warn,
            "the kernel has no seccomp filters: children make every system call",
        ),
    ];
    for (part, on, otherwise, advice) in parts {
        let check = format!("isolation: {part}");
        all.push(if on { good(&check, "in force") } else { finding(&check, otherwise, "missing", Some(advice)) });
    }
    all.push(limits(status.enforced));
    all.extend(visibility::look(&status));
    let (ours, theirs) = (admin.revocation.registry.load_now().children_max, status.max_children);
    if usize::try_from(theirs).is_ok_and(|theirs| ours > theirs) {
        let found = format!("[sessions] children_total is {ours}, and the supervisor starts at most {theirs}");
        let advice = "raise [caps] children in supervisor.toml, or lower children_total: what is above is refused";
        all.push(finding("caps", Health::Warn, found, Some(advice)));
    }
    all
}

fn descriptors(admin: &Admin) -> Finding {
    let limit = lifecycle::descriptor_limit();
    let children = admin.revocation.registry.load_now().children_max;
    let wanted = admin.surroundings.connections.saturating_add(children.saturating_mul(DESCRIPTORS_A_CHILD));
    let found = format!("{limit} descriptors may be used, and {wanted} would be at all caps");
    if limit < wanted {
        finding("descriptors", Health::Note, found, Some("raise LimitNOFILE=; until then there are fewer connections"))
    } else {
        good("descriptors", found)
    }
}

/// What the last child said of itself.
async fn child(admin: &Admin) -> Finding {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "serverInfo")]
        server: Server,
    }
    #[derive(Deserialize)]
    struct Server {
        name: String,
        version: String,
    }
    let newest = admin.store.sessions_after(None, None, 1).await.ok().and_then(|sessions| sessions.into_iter().next());
    match newest.and_then(|session| serde_json::from_str::<Answer>(&session.answer).ok()) {
        Some(Answer { server }) => {
            let printable = |text: String| text.chars().filter(|c| !c.is_control()).take(80).collect::<String>();
            good("child", format!("the newest session's is {} {}", printable(server.name), printable(server.version)))
        }
        None => finding("child", Health::Note, "no session is open, so that its version is not known", None),
    }
}

/// Whether clients can reach the broker under its public address, and whether their addresses arrive.
async fn reached(admin: &Admin) -> Vec<Finding> {
    let Surroundings { public_url, limits, .. } = &admin.surroundings;
    let before = limits.came_in();
    let answer = async {
        let client = Client::builder().timeout(LOOK_WITHIN).redirect(Policy::none()).no_proxy().build()?;
        client.get(format!("{public_url}/mcp")).send().await
    };
    let reached = match answer.await {
        Ok(answer) => {
            let is_bearer = |value: &reqwest::header::HeaderValue| value.as_bytes().starts_with(b"Bearer ");
            let asks = answer.headers().get(WWW_AUTHENTICATE).is_some_and(is_bearer);
            if answer.status() == StatusCode::UNAUTHORIZED && asks {
                good("public_url", format!("{public_url} leads here"))
            } else {
                let found =
                    format!("{public_url}/mcp answers with status {}, which is not the broker", answer.status());
                let advice =
                    "the reverse proxy must hand /mcp, /oauth/, /account and /.well-known/ to the broker unchanged";
                finding("public_url", Health::Fail, found, Some(advice))
            }
        }
        Err(e) => finding(
            "public_url",
            Health::Warn,
            format!("{public_url} cannot be reached from this machine: {}", chain(&e.without_url())),
            Some("look at the reverse proxy, its certificate and DNS; fine only if clients come by another way"),
        ),
    };
    let after = limits.came_in();
    vec![reached, proxy_headers(public_url, before, after)]
}

/// Whether a proxy in front tells whose requests it hands on: `before` and `after` one that came by the public address.
fn proxy_headers(public_url: &str, before: CameIn, after: CameIn) -> Finding {
    const CHECK: &str = "proxy headers";
    if after.forwarded_by_stranger > 0 {
        let found = format!(
            "{} requests had X-Forwarded-For from an address that [http] trusted_proxies does not name",
            after.forwarded_by_stranger
        );
        finding(CHECK, Health::Warn, found, Some("name the reverse proxy's address there, or all clients count as one"))
    } else if public_url.starts_with("https:") && after.bare > before.bare && after.forwarded == before.forwarded {
        let found = "the reverse proxy sends no X-Forwarded-For: all clients count as one address";
        let advice = "let it name the client's address (nginx: proxy_set_header X-Forwarded-For $remote_addr;)";
        finding(CHECK, Health::Warn, found, Some(advice))
    } else if after.forwarded > before.forwarded {
        good(CHECK, "clients' addresses arrive")
    } else {
        finding(CHECK, Health::Note, "nothing has come by a proxy that is named or has a closed Unix socket", None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_by_more_than_a_minute_are_told() {
        let at = |secs| Some(UnixTime::from_secs(secs));
        for (theirs, state) in
            [(at(1000), Health::Ok), (at(940), Health::Ok), (at(1061), Health::Warn), (None, Health::Note)]
        {
            assert_eq!(clock(UnixTime::from_secs(1000), theirs).state, state, "{theirs:?}");
        }
    }

    #[test]
    fn a_limit_that_the_kernel_does_not_enforce_is_named() {
        let all = Enforced { memory: true, pids: true, cpu: true, io: true };
        assert_eq!(limits(all).state, Health::Ok);
        let found = limits(Enforced { io: false, ..all });
        assert!(found.state == Health::Note && found.found.ends_with(": disk"), "{found:?}");
        let found = limits(Enforced { memory: false, cpu: false, ..all });
        assert!(found.state == Health::Warn && found.found.ends_with(": memory, CPU"), "{found:?}");
        assert!(found.advice.is_some());
    }

    #[test]
    fn a_proxy_is_looked_at_by_what_came_through_it() {
        let came = |forwarded, bare, forwarded_by_stranger| CameIn { forwarded, bare, forwarded_by_stranger };
        let before = came(5, 5, 0);
        for (url, after, state) in [
            ("https://mcp.example", came(6, 5, 0), Health::Ok),
            ("https://mcp.example", came(5, 6, 0), Health::Warn),
            ("http://localhost", came(5, 6, 0), Health::Note),
            ("https://mcp.example", came(6, 5, 1), Health::Warn),
            ("https://mcp.example", before, Health::Note),
        ] {
            assert_eq!(proxy_headers(url, before, after).state, state, "{url} {after:?}");
        }
    }
}
