//! What becomes of one session and its child: every decision, `(state, event, now) -> effect`, without I/O.
//!
//! It trusts that its caller carries the effect out and reports what really happened. It knows a child by its number only,
//! so what is told late about an earlier child (its end, say) changes nothing for the present one. Looking whether a child
//! may be stopped and taking it away from its session are one step here, and the child's own table of requests closes in
//! one step as well (`Bridge::close_if_idle`): a request that was accepted is never lost to a stop.

use tokio::time::Instant;

use crate::session::restart_backoff::RestartBackoff;

/// A child of this broker, numbered from 1 in the order of their starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildNumber(pub(crate) u64);

/// What serves the session. `C` is the child: the bridge, or a name in tests.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase<C> {
    /// Nothing; the next request starts a child.
    Cold,
    /// A child is being started; whoever needs it waits for the outcome.
    Starting,
    /// This one.
    Live { number: ChildNumber, child: C },
    /// The session is over.
    Ended,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event<C> {
    /// A request needs a child.
    Wanted,
    /// The child of [`Effect::Start`] has been through the handshake.
    Started(ChildNumber, C),
    /// It could not be had.
    NotStarted,
    /// A child with a newer token is wanted in the place of the one that runs.
    RenewalWanted,
    /// The child of [`Effect::Renew`] has been through the handshake.
    Renewed(ChildNumber, C),
    /// It could not be had; the child that runs has a token that ends.
    NotRenewed,
    /// The broker stops this child: it is idle, or makes room, or its token ends.
    Stopped(ChildNumber),
    /// This child is gone; whether that was its own doing.
    Gone(ChildNumber, bool),
    /// The session is over: ended by its client, its grant, or for being idle too long.
    Over,
    /// The broker stops. Sessions go on after it.
    Closing,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect<C> {
    /// Nothing.
    None,
    /// The request goes to this child.
    Serve(C),
    /// The request waits for the start that is under way.
    Wait,
    /// Start a child, not before this time, and report [`Event::Started`] or [`Event::NotStarted`]; the request waits.
    Start(Option<Instant>),
    /// Start a child beside the one that runs, and report [`Event::Renewed`] or [`Event::NotRenewed`].
    Renew(C),
    /// This child has served its time: what it has in flight may end, then it is stopped.
    Drain(C),
    /// Stop this child.
    Stop(C),
    /// End the session, for this reason.
    End(&'static str),
    /// There is no such session any more.
    Unknown,
    /// The broker is stopping.
    ShuttingDown,
}

/// The state.
#[derive(Debug)]
pub(crate) struct Machine<C> {
    phase: Phase<C>,
    /// A child with a newer token is being started.
    renewing: bool,
    closing: bool,
    /// Whether the session of a child that ended on its own lives on.
    respawn: bool,
    backoff: RestartBackoff,
}

impl<C: Clone> Machine<C> {
    /// A session without a child.
    pub(crate) fn cold(respawn: bool) -> Self {
        Self { phase: Phase::Cold, renewing: false, closing: false, respawn, backoff: RestartBackoff::default() }
    }

    /// A session whose child has been through the handshake.
    pub(crate) fn live(respawn: bool, number: ChildNumber, child: C) -> Self {
        Self { phase: Phase::Live { number, child }, ..Self::cold(respawn) }
    }

    /// The running child, if one runs.
    pub(crate) fn child(&self) -> Option<(ChildNumber, &C)> {
        match &self.phase {
            Phase::Live { number, child } => Some((*number, child)),
            Phase::Cold | Phase::Starting | Phase::Ended => None,
        }
    }

    /// Whether a child is being started.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting)
    }

    /// Is over if it has no child and none is being started; whether it is over now.
    pub(crate) fn end_if_cold(&mut self) -> bool {
        if matches!(self.phase, Phase::Cold) {
            self.phase = Phase::Ended;
        }
        matches!(self.phase, Phase::Ended)
    }

    /// Takes one event and says what is to be done.
    pub(crate) fn step(&mut self, event: Event<C>, now: Instant) -> Effect<C> {
        match event {
            Event::Wanted => self.wanted(),
            Event::Started(number, child) => self.started(number, child),
            Event::NotStarted => {
                if matches!(self.phase, Phase::Starting) {
                    self.phase = Phase::Cold;
                }
                Effect::None
            }
            Event::RenewalWanted => self.renewal_wanted(),
            Event::Renewed(number, child) => self.renewed(number, child),
            Event::NotRenewed => {
                self.renewing = false;
                match std::mem::replace(&mut self.phase, Phase::Cold) {
                    // The next request starts a child with the new token.
                    Phase::Live { child, .. } => Effect::Drain(child),
                    other => {
                        self.phase = other;
                        Effect::None
                    }
                }
            }
            Event::Stopped(number) => match self.take_if(number) {
                Some(child) => Effect::Stop(child),
                None => Effect::None,
            },
            Event::Gone(number, own_doing) => self.gone(number, own_doing, now),
            Event::Over => match std::mem::replace(&mut self.phase, Phase::Ended) {
                Phase::Live { child, .. } => Effect::Stop(child),
                Phase::Cold | Phase::Starting | Phase::Ended => Effect::None,
            },
            Event::Closing => {
                self.closing = true;
                match std::mem::replace(&mut self.phase, Phase::Cold) {
                    Phase::Live { child, .. } => Effect::Stop(child),
                    other => {
                        self.phase = other;
                        Effect::None
                    }
                }
            }
        }
    }

    fn wanted(&mut self) -> Effect<C> {
        match &self.phase {
            Phase::Live { child, .. } => Effect::Serve(child.clone()),
            Phase::Ended => Effect::Unknown,
            Phase::Starting => Effect::Wait,
            Phase::Cold if self.closing => Effect::ShuttingDown,
            Phase::Cold => {
                self.phase = Phase::Starting;
                Effect::Start(self.backoff.not_before())
            }
        }
    }

    fn started(&mut self, number: ChildNumber, child: C) -> Effect<C> {
        if !matches!(self.phase, Phase::Starting) {
            // Ended meanwhile.
            return Effect::Stop(child);
        }
        if self.closing {
            self.phase = Phase::Cold;
            return Effect::Stop(child);
        }
        self.phase = Phase::Live { number, child: child.clone() };
        Effect::Serve(child)
    }

    fn renewal_wanted(&mut self) -> Effect<C> {
        match &self.phase {
            Phase::Live { child, .. } if !self.renewing && !self.closing => {
                self.renewing = true;
                Effect::Renew(child.clone())
            }
            _ => Effect::None,
        }
    }

    fn renewed(&mut self, number: ChildNumber, child: C) -> Effect<C> {
        self.renewing = false;
        if self.closing {
            return Effect::Stop(child);
        }
        match std::mem::replace(&mut self.phase, Phase::Cold) {
            Phase::Live { child: old, .. } => {
                self.phase = Phase::Live { number, child };
                Effect::Drain(old)
            }
            // The old one was stopped meanwhile, perhaps to make room for this one.
            Phase::Cold => {
                self.phase = Phase::Live { number, child };
                Effect::None
            }
            // A request was faster and starts one with the new token too, or the session is over.
            other @ (Phase::Starting | Phase::Ended) => {
                self.phase = other;
                Effect::Stop(child)
            }
        }
    }

    fn gone(&mut self, number: ChildNumber, own_doing: bool, now: Instant) -> Effect<C> {
        if self.take_if(number).is_none() || !own_doing {
            return Effect::None;
        }
        if !self.respawn {
            Effect::End("child-ended")
        } else if self.backoff.failed(now) {
            Effect::None
        } else {
            Effect::End("child-ended-too-often")
        }
    }

    /// Takes the child away from the session if it is the one that serves it.
    fn take_if(&mut self, number: ChildNumber) -> Option<C> {
        match std::mem::replace(&mut self.phase, Phase::Cold) {
            Phase::Live { number: serves, child } if serves == number => Some(child),
            other => {
                self.phase = other;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ChildNumber = ChildNumber(1);
    const TWO: ChildNumber = ChildNumber(2);

    fn phases() -> [(&'static str, Machine<char>); 4] {
        let mut starting = Machine::cold(false);
        starting.step(Event::Wanted, Instant::now());
        let mut ended = Machine::cold(false);
        ended.step(Event::Over, Instant::now());
        [
            ("cold", Machine::cold(false)),
            ("starting", starting),
            ("live", Machine::live(false, ONE, 'a')),
            ("ended", ended),
        ]
    }

    /// An event, and for each phase its effect and the phase after it.
    type Row = (Event<char>, [(Effect<char>, &'static str); 4]);

    /// The whole table: in every phase, what each event leads to, and the phase after it.
    #[tokio::test]
    async fn every_event_in_every_phase_has_its_effect() {
        use Effect::{Drain, End, None, Serve, ShuttingDown, Start, Stop, Unknown, Wait};
        let rows: [Row; 13] = [
            // event                       cold                       starting               live                     ended
            (
                Event::Wanted,
                [(Start(Option::None), "starting"), (Wait, "starting"), (Serve('a'), "live"), (Unknown, "ended")],
            ),
            (
                Event::Started(TWO, 'b'),
                [(Stop('b'), "cold"), (Serve('b'), "live"), (Stop('b'), "live"), (Stop('b'), "ended")],
            ),
            (Event::NotStarted, [(None, "cold"), (None, "cold"), (None, "live"), (None, "ended")]),
            (Event::RenewalWanted, [(None, "cold"), (None, "starting"), (Effect::Renew('a'), "live"), (None, "ended")]),
            (
                Event::Renewed(TWO, 'b'),
                [(None, "live"), (Stop('b'), "starting"), (Drain('a'), "live"), (Stop('b'), "ended")],
            ),
            (Event::NotRenewed, [(None, "cold"), (None, "starting"), (Drain('a'), "cold"), (None, "ended")]),
            (Event::Stopped(ONE), [(None, "cold"), (None, "starting"), (Stop('a'), "cold"), (None, "ended")]),
            (Event::Stopped(TWO), [(None, "cold"), (None, "starting"), (None, "live"), (None, "ended")]),
            (
                Event::Gone(ONE, true),
                [(None, "cold"), (None, "starting"), (End("child-ended"), "cold"), (None, "ended")],
            ),
            (Event::Gone(ONE, false), [(None, "cold"), (None, "starting"), (None, "cold"), (None, "ended")]),
            (Event::Gone(TWO, true), [(None, "cold"), (None, "starting"), (None, "live"), (None, "ended")]),
            (Event::Over, [(None, "ended"), (None, "ended"), (Stop('a'), "ended"), (None, "ended")]),
            (Event::Closing, [(None, "cold"), (None, "starting"), (Stop('a'), "cold"), (None, "ended")]),
        ];
        for (event, row) in rows {
            for ((phase, mut machine), (effect, after)) in phases().into_iter().zip(row) {
                assert_eq!(machine.step(event.clone(), Instant::now()), effect, "{phase}: {event:?}");
                let now = match machine.phase {
                    Phase::Cold => "cold",
                    Phase::Starting => "starting",
                    Phase::Live { .. } => "live",
                    Phase::Ended => "ended",
                };
                assert_eq!(now, after, "{phase}: {event:?}");
            }
        }
        // A broker that stops starts nothing, and keeps no child that was being started.
        for (phase, mut machine) in phases() {
            machine.step(Event::Closing, Instant::now());
            let wanted = machine.step(Event::Wanted, Instant::now());
            let right = match phase {
                "starting" => Wait,
                "ended" => Unknown,
                _ => ShuttingDown,
            };
            assert_eq!(wanted, right, "{phase}");
            assert_eq!(machine.step(Event::Started(TWO, 'b'), Instant::now()), Stop('b'), "{phase}");
            assert_eq!(machine.step(Event::Renewed(TWO, 'c'), Instant::now()), Stop('c'), "{phase}");
            assert!(machine.child().is_none(), "{phase}");
        }
    }

    #[tokio::test]
    async fn only_what_has_no_child_and_starts_none_is_forgotten() {
        for (phase, mut machine) in phases() {
            let is_over = machine.end_if_cold();
            assert_eq!(is_over, matches!(phase, "cold" | "ended"), "{phase}");
            let wanted = machine.step(Event::Wanted, Instant::now());
            assert_eq!(matches!(wanted, Effect::Unknown), is_over, "{phase}");
        }
    }

    #[tokio::test]
    async fn a_renewal_is_begun_once_and_again_when_it_is_over() {
        let mut machine = Machine::live(false, ONE, 'a');
        assert_eq!(machine.step(Event::RenewalWanted, Instant::now()), Effect::Renew('a'));
        assert_eq!(machine.step(Event::RenewalWanted, Instant::now()), Effect::None);
        assert_eq!(machine.step(Event::Renewed(TWO, 'b'), Instant::now()), Effect::Drain('a'));
        // What the old one says when it goes is nobody's business any more.
        assert_eq!(machine.step(Event::Gone(ONE, true), Instant::now()), Effect::None);
        assert_eq!(machine.step(Event::RenewalWanted, Instant::now()), Effect::Renew('b'));
    }

    #[tokio::test(start_paused = true)]
    async fn with_respawn_a_session_outlives_its_child_until_it_fails_too_often() {
        let mut machine = Machine::live(true, ONE, 'a');
        for n in 0..5 {
            assert_eq!(machine.step(Event::Gone(ChildNumber(n + 1), true), Instant::now()), Effect::None);
            let Effect::Start(Some(due)) = machine.step(Event::Wanted, Instant::now()) else { panic!("no start") };
            assert!(due > Instant::now(), "with a pause");
            machine.step(Event::Started(ChildNumber(n + 2), 'a'), Instant::now());
        }
        assert_eq!(
            machine.step(Event::Gone(ChildNumber(6), true), Instant::now()),
            Effect::End("child-ended-too-often")
        );
    }
}
