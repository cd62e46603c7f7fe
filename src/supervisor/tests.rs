//! Every refusal and every farewell of the supervisor, as a table over its state machine: no socket, no process.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::config::Caps;
use crate::core::{ConnId, Core, Effect, Event, Policy, StopStep};
use crate::uid::{Pool, UidRange};
use nix::unistd::Uid;
use wire::message::{
    ChildId, Exit, Farewell, Isolation, Label, PROTOCOL, Refusal, Reply, Request, StartStep, TenantId, Ticket,
};
use wire::secret::UpstreamToken;

const BROKER: Uid = Uid::from_raw(990);
const A: ConnId = ConnId(1);
const B: ConnId = ConnId(2);
const C: ConnId = ConnId(3);

fn range() -> UidRange {
    UidRange::new(73_728, 4).expect("a range")
}

/// Two connections, three children, two a tenant, three uids (of four, one is the sweeper's), one start a second and
/// four at once.
fn core(now: Instant) -> Core {
    let isolation = Isolation { own_uid: true, cgroup: false, landlock: false, seccomp: false };
    let policy = Policy {
        broker: BROKER,
        own: Uid::from_raw(0),
        connections: 2,
        children_of: HashMap::new(),
        caps: Caps { children: 3, children_per_tenant: 2, spawns_per_second: 1, spawn_burst: 4 },
        isolation,
    };
    Core::new(policy, Some(Pool::new(range())), now)
}

fn hello(conn: ConnId) -> Event {
    Event::Said(conn, Request::Hello { protocol: PROTOCOL })
}

fn spawn(conn: ConnId, tenant: u64) -> Event {
    let request = Request::Spawn {
        ticket: Ticket(tenant),
        tenant: TenantId::new(tenant).expect("a tenant"),
        label: Label::parse("u").expect("a label"),
        token: UpstreamToken::parse("t").expect("a token"),
    };
    Event::Said(conn, request)
}

fn started(child: u64) -> Event {
    Event::Started(ChildId(child), 1000)
}

fn ended(child: u64) -> Event {
    Event::Ended(ChildId(child), Exit::Code(0).into())
}

/// Nothing is left under the uid that was leased in this place.
fn cleaned(place: u32) -> Event {
    Event::Cleaned(range().get(73_727 + place).expect("in range"), true)
}

fn stop(conn: ConnId, child: u64) -> Event {
    Event::Said(conn, Request::Stop { ticket: Ticket(99), child: ChildId(child) })
}

/// A connection that has said `Hello`.
fn ready(conn: ConnId) -> Vec<Event> {
    vec![Event::Connected(conn, BROKER), hello(conn)]
}

/// Feeds events and returns what follows from the last one.
fn last(core: &mut Core, now: Instant, events: Vec<Event>) -> Vec<Effect> {
    let mut effects = Vec::new();
    for event in events {
        effects = core.step(event, now);
    }
    effects
}

#[derive(Debug, PartialEq)]
enum Said {
    No(Refusal),
    Bye(Farewell),
}

fn first_word(effects: &[Effect]) -> Option<Said> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send(_, Reply::Refused { refusal, .. }) => Some(Said::No(*refusal)),
        Effect::HangUp(_, reason) => Some(Said::Bye(*reason)),
        _ => None,
    })
}

fn and(mut events: Vec<Event>, more: Vec<Event>) -> Vec<Event> {
    events.extend(more);
    events
}

fn not_started(errno: i32) -> Event {
    Event::NotStarted(ChildId(1), StartStep::Exec, errno)
}

/// All starts that may be made at once.
fn burst() -> Vec<Event> {
    vec![spawn(A, 1), spawn(A, 1), spawn(A, 2), ended(1), cleaned(1), spawn(A, 1)]
}

fn table() -> Vec<(&'static str, Vec<Event>, Said)> {
    use Said::{Bye, No};
    let a = || ready(A);
    let wait = 1000;
    vec![
        ("a stranger connects", vec![Event::Connected(A, Uid::from_raw(1000))], Bye(Farewell::PeerNotAllowed)),
        ("even root is a stranger", vec![Event::Connected(A, Uid::from_raw(0))], Bye(Farewell::PeerNotAllowed)),
        (
            "a third connection",
            and(a(), vec![Event::Connected(B, BROKER), Event::Connected(C, BROKER)]),
            Bye(Farewell::TooManyConnections),
        ),
        (
            "an older protocol",
            vec![Event::Connected(A, BROKER), Event::Said(A, Request::Hello { protocol: PROTOCOL - 1 })],
            Bye(Farewell::UnsupportedProtocol { speaks: PROTOCOL }),
        ),
        ("a spawn before hello", vec![Event::Connected(A, BROKER), spawn(A, 1)], Bye(Farewell::HelloExpected)),
        ("no hello in time", vec![Event::Connected(A, BROKER), Event::HelloOverdue(A)], Bye(Farewell::HelloExpected)),
        ("hello twice", and(a(), vec![hello(A)]), Bye(Farewell::HelloRepeated)),
        ("a bad frame", and(a(), vec![Event::Garbled(A)]), Bye(Farewell::BadFrame)),
        ("a bad first frame", vec![Event::Connected(A, BROKER), Event::Garbled(A)], Bye(Farewell::BadFrame)),
        ("descriptors", and(a(), vec![Event::Smuggled(A)]), Bye(Farewell::UnexpectedDescriptors)),
        ("answers pile up", and(a(), vec![Event::Backlogged(A)]), Bye(Farewell::NotReading)),
        ("stopping, nothing runs", and(a(), vec![Event::Drain]), Bye(Farewell::ShuttingDown)),
        ("connecting while stopping", vec![Event::Drain, Event::Connected(A, BROKER)], Bye(Farewell::ShuttingDown)),
        ("a spawn while stopping", and(a(), vec![spawn(A, 1), Event::Drain, spawn(A, 1)]), No(Refusal::ShuttingDown)),
        (
            "a fourth child",
            and(a(), vec![spawn(A, 1), spawn(A, 1), spawn(A, 2), spawn(A, 2)]),
            No(Refusal::ChildrenTotal { retry_after_ms: wait }),
        ),
        (
            "a third child of one tenant",
            and(a(), vec![spawn(A, 1), spawn(A, 1), spawn(A, 1)]),
            No(Refusal::ChildrenOfTenant { retry_after_ms: wait }),
        ),
        (
            "a fourth start when one of three has ended and three uids are not clean",
            and(a(), vec![spawn(A, 1), spawn(A, 1), spawn(A, 2), ended(1), spawn(A, 1)]),
            No(Refusal::NoFreeUid { retry_after_ms: 250 }),
        ),
        (
            "more starts at once than the burst",
            and(a(), and(burst(), vec![ended(2), cleaned(2), spawn(A, 1)])),
            No(Refusal::SpawnRate { retry_after_ms: 1001 }),
        ),
        ("stopping nobody's child", and(a(), vec![stop(A, 1)]), No(Refusal::NoSuchChild)),
        (
            "stopping another connection's child",
            and(and(a(), ready(B)), vec![spawn(A, 1), started(1), stop(B, 1)]),
            No(Refusal::NoSuchChild),
        ),
        (
            "stopping a child that has ended",
            and(a(), vec![spawn(A, 1), started(1), ended(1), stop(A, 1)]),
            No(Refusal::NoSuchChild),
        ),
        ("stopping a child that is only half made", and(a(), vec![spawn(A, 1), stop(A, 1)]), No(Refusal::NoSuchChild)),
        (
            "a third child of one tenant while two are half made and one of them is held",
            and(a(), vec![spawn(A, 1), spawn(A, 1), started(1), spawn(A, 1)]),
            No(Refusal::ChildrenOfTenant { retry_after_ms: wait }),
        ),
        (
            "a start that is held until its deadline",
            and(a(), vec![spawn(A, 1), not_started(libc::ETIMEDOUT)]),
            No(Refusal::StartFailed { step: StartStep::Exec, errno: libc::ETIMEDOUT }),
        ),
        (
            "a start that the end of the grace cuts short",
            and(a(), vec![spawn(A, 1), Event::Drain, Event::GraceOver, not_started(libc::ECANCELED)]),
            No(Refusal::ShuttingDown),
        ),
        (
            "a start that fails",
            and(a(), vec![spawn(A, 1), not_started(2)]),
            No(Refusal::StartFailed { step: StartStep::Exec, errno: 2 }),
        ),
        (
            "a program that is not installed",
            and(a(), vec![spawn(A, 1), Event::NotStarted(ChildId(1), StartStep::Program, 2)]),
            No(Refusal::StartFailed { step: StartStep::Program, errno: 2 }),
        ),
    ]
}

#[test]
fn each_case_is_refused_for_its_reason() {
    let now = Instant::now();
    for (name, events, expected) in table() {
        let effects = last(&mut core(now), now, events);
        assert_eq!(first_word(&effects), Some(expected), "{name}: {effects:?}");
    }
}

#[test]
fn the_table_has_every_refusal_and_every_farewell() {
    let codes: BTreeSet<_> = table()
        .into_iter()
        .map(|(_, _, said)| match said {
            Said::No(refusal) => refusal.code(),
            Said::Bye(farewell) => farewell.code(),
        })
        .collect();
    // Seven refusals and nine farewells; `shutting-down` is both.
    assert_eq!(codes.len(), 15, "{codes:?}");
}

#[test]
fn after_a_goodbye_nothing_is_heard() {
    let now = Instant::now();
    let mut core = core(now);
    last(&mut core, now, and(ready(A), vec![Event::Garbled(A)]));
    assert!(core.step(spawn(A, 1), now).is_empty());
    assert!(core.step(hello(A), now).is_empty());
}

#[test]
fn the_rate_recovers_with_time() {
    let start = Instant::now();
    let mut core = core(start);
    last(&mut core, start, and(ready(A), and(burst(), vec![ended(2), cleaned(2)])));
    assert!(first_word(&core.step(spawn(A, 1), start)).is_some());
    let later = start + Duration::from_millis(1001);
    assert!(matches!(core.step(spawn(A, 1), later).as_slice(), [Effect::Start(_)]));
}

#[test]
fn other_caps_hold_for_the_next_child_and_end_none() {
    let now = Instant::now();
    let mut core = core(now);
    last(&mut core, now, and(ready(A), vec![spawn(A, 1), spawn(A, 1)]));
    let caps = Caps { children: 1, children_per_tenant: 1, spawns_per_second: 1, spawn_burst: 3 };
    core.change_policy(caps, HashMap::new(), core.status().isolation);
    assert_eq!((core.status().children, core.status().max_children), (2, 1));
    assert!(matches!(first_word(&core.step(spawn(A, 2), now)), Some(Said::No(Refusal::ChildrenTotal { .. }))));
}

#[test]
fn losing_a_connection_stops_its_children_and_no_others() {
    let now = Instant::now();
    let mut core = core(now);
    let effects = last(&mut core, now, and(and(ready(A), ready(B)), vec![spawn(A, 1), spawn(B, 2), Event::Gone(A)]));
    assert!(matches!(effects.as_slice(), [Effect::Stop(ChildId(1), StopStep::Eof)]), "{effects:?}");
}

#[test]
fn losing_a_connection_stops_its_half_made_child_too_and_nobody_else_gets_its_uid_before_it_is_gone() {
    let now = Instant::now();
    let mut core = core(now);
    last(&mut core, now, and(ready(A), vec![spawn(A, 1)]));
    let effects = core.step(Event::Gone(A), now);
    assert!(matches!(effects.as_slice(), [Effect::Stop(ChildId(1), StopStep::Eof)]), "{effects:?}");
    assert_eq!((core.status().children, core.status().uids_free), (1, 2));
    let effects = core.step(not_started(libc::ECANCELED), now);
    assert!(matches!(effects.as_slice(), [Effect::Send(..), Effect::Clean(_)]), "{effects:?}");
    assert_eq!((core.status().children, core.status().uids_free, core.status().uids_unclean), (0, 2, 1));
}

#[test]
fn a_half_made_child_holds_up_the_end_until_it_is_gone() {
    let now = Instant::now();
    let mut core = core(now);
    let effects = last(&mut core, now, and(ready(A), vec![spawn(A, 1), Event::Drain, Event::GraceOver]));
    assert!(matches!(effects.as_slice(), [Effect::Stop(_, StopStep::Term)]), "{effects:?}");
    core.step(not_started(libc::ECANCELED), now);
    assert!(!core.drained());
    core.step(cleaned(1), now);
    assert!(core.drained());
}

#[test]
fn each_child_has_a_uid_of_its_own_also_two_of_one_user() {
    let now = Instant::now();
    let mut core = core(now);
    last(&mut core, now, ready(A));
    let uids: BTreeSet<_> = [1, 1, 2]
        .into_iter()
        .map(|tenant| match core.step(spawn(A, tenant), now).as_slice() {
            [Effect::Start(order)] => order.uid.expect("a uid"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(uids.len(), 3);
}

#[test]
fn a_uid_is_cleaned_at_its_childs_end_and_the_cgroup_goes_with_the_tenants_last() {
    let now = Instant::now();
    let mut core = core(now);
    last(&mut core, now, and(ready(A), vec![spawn(A, 1), spawn(A, 1)]));
    let effects = core.step(ended(1), now);
    assert!(matches!(effects.as_slice(), [Effect::Send(..), Effect::Clean(uid)] if uid.get() == 73_728), "{effects:?}");
    let effects = core.step(ended(2), now);
    assert!(matches!(effects.as_slice(), [Effect::Send(..), Effect::Clean(_)]), "{effects:?}");
}

#[test]
fn a_uid_is_leased_to_the_next_child_only_when_it_is_clean() {
    let now = Instant::now();
    let mut core = core(now);
    last(&mut core, now, and(ready(A), vec![spawn(A, 1), spawn(A, 1), spawn(A, 2), ended(1)]));
    let refused = core.step(spawn(A, 3), now);
    assert!(matches!(first_word(&refused), Some(Said::No(Refusal::NoFreeUid { .. }))));
    assert_eq!(core.status().uids_unclean, 1);
    core.step(cleaned(1), now);
    let effects = core.step(spawn(A, 3), now);
    let first = range().get(73_728);
    assert!(matches!(effects.as_slice(), [Effect::Start(order)] if order.uid == first), "{effects:?}");
}

#[test]
fn a_uid_in_quarantine_is_tried_again_when_nothing_else_is_free_and_free_when_it_is_clean_after_all() {
    let now = Instant::now();
    let mut core = core(now);
    last(&mut core, now, and(ready(A), vec![spawn(A, 1), spawn(A, 1), spawn(A, 2), ended(1)]));
    let uid = range().get(73_728).expect("the first");
    core.step(Event::Cleaned(uid, false), now);
    let effects = core.step(spawn(A, 3), now);
    assert!(matches!(effects.as_slice(), [Effect::Send(..), Effect::Clean(again)] if *again == uid), "{effects:?}");
    core.step(Event::Cleaned(uid, true), now);
    assert_eq!((core.status().uids_free, core.status().uids_unclean), (1, 0));
}

#[test]
fn an_exit_is_told_once_and_a_repeated_stop_is_answered_and_changes_nothing() {
    let now = Instant::now();
    let mut core = core(now);
    last(&mut core, now, and(ready(A), vec![spawn(A, 1), started(1)]));
    assert_eq!(core.step(stop(A, 1), now).len(), 2);
    assert!(matches!(core.step(stop(A, 1), now).as_slice(), [Effect::Send(_, Reply::Stopping { .. })]));
    let told = core.step(Event::Ended(ChildId(1), Exit::Signal(9).into()), now);
    assert!(
        matches!(told.first(), Some(Effect::Send(_, Reply::Exited { ending, .. })) if ending.exit == Exit::Signal(9))
    );
    assert!(core.step(Event::Ended(ChildId(1), Exit::Signal(9).into()), now).is_empty());
}

#[test]
fn the_end_is_announced_before_anything_is_stopped_and_once() {
    let now = Instant::now();
    let mut core = core(now);
    let effects = last(&mut core, now, and(ready(A), vec![spawn(A, 1), Event::Connected(B, BROKER), Event::Drain]));
    assert!(matches!(effects.first(), Some(Effect::Send(A, Reply::Draining))), "{effects:?}");
    assert!(matches!(effects.get(1), Some(Effect::HangUp(B, Farewell::ShuttingDown))), "{effects:?}");
    assert_eq!(effects.len(), 2, "nothing is stopped within the grace: {effects:?}");
    assert!(core.step(Event::Drain, now).is_empty());
    assert!(core.step(Event::Connected(C, BROKER), now).len() == 1, "nobody comes in any more");
}

#[test]
fn a_replaced_program_is_told_to_those_connections_that_have_a_child_of_the_old_one() {
    let now = Instant::now();
    let mut core = core(now);
    let greeting = Event::Connected(C, BROKER);
    last(&mut core, now, and(and(ready(A), ready(B)), vec![spawn(A, 1), greeting, spawn(B, 2), started(2)]));
    let told = |core: &mut Core, below| core.step(Event::ProgramReplaced(ChildId(below)), now);
    let effects = told(&mut core, 2);
    let below = ChildId(2);
    assert!(
        matches!(effects.as_slice(), [Effect::Send(A, Reply::ProgramReplaced { below: said })] if *said == below),
        "half made, it may run the old one: {effects:?}"
    );
    assert_eq!(told(&mut core, 3).len(), 2);
    core.step(ended(1), now);
    assert!(matches!(told(&mut core, 3).as_slice(), [Effect::Send(B, _)]));
    core.step(Event::Garbled(B), now);
    assert!(told(&mut core, 3).is_empty(), "it was told goodbye");
    assert_eq!(core.status().children, 1, "nothing is stopped");
}

#[test]
fn when_the_broker_has_stopped_its_children_itself_the_grace_is_not_waited_for() {
    let now = Instant::now();
    let mut core = core(now);
    last(&mut core, now, and(ready(A), vec![spawn(A, 1), started(1), Event::Drain, stop(A, 1)]));
    core.step(ended(1), now);
    core.step(cleaned(1), now);
    assert!(core.drained());
}

#[test]
fn stopping_waits_for_children_and_for_cleaning_and_then_says_goodbye() {
    let now = Instant::now();
    let mut core = core(now);
    let effects = last(&mut core, now, and(ready(A), vec![spawn(A, 1), Event::Drain, Event::GraceOver]));
    assert!(matches!(effects.as_slice(), [Effect::Stop(_, StopStep::Term)]), "{effects:?}");
    core.step(Event::Ended(ChildId(1), Exit::Signal(15).into()), now);
    assert!(!core.drained());
    let effects = core.step(cleaned(1), now);
    assert!(core.drained());
    assert_eq!(first_word(&effects), Some(Said::Bye(Farewell::ShuttingDown)));
}
