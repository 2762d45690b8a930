//! The circuit breaker of one endpoint. Pure: it is given the time and its randomness.
//!
//! *Closed*, dials go through. After `failures` failed dials or failed turns in a row it is
//! *open* for a jittered time that doubles up to `max_open`: dials are refused at once. Then
//! it is *half open*: one dial at a time probes; its success closes the breaker, its failure
//! opens it again. Dials and turns are counted apart, since an endpoint may well accept
//! connections and answer nothing on them. Of failures that a request may have caused only the
//! first in a row of one session counts: what one client sends must not close an endpoint to others.

use std::time::Duration;

use tokio::time::Instant;

use crate::{config::BreakerRules, telemetry::metrics::BreakerState};

/// What was learned of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// By this dial a connection was made, or a request answered.
    Reached(Admission),
    /// By this dial none was made, or the answer was a server's failure; then by the wish of
    /// the session of this number.
    Unreachable(Admission, Option<u64>),
    /// A turn came to its end.
    TurnEnded,
    /// A turn failed by the endpoint's fault, in the session of this number.
    TurnFailed(u64),
}

/// A dial that the breaker allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Ordinary,
    /// The one dial of a half-open breaker, until then. It must be followed by
    /// [`Breaker::learn`] or [`Breaker::give_back`]; if it is lost, another follows after
    /// [`PROBE_LIMIT`].
    Probe(Instant),
}

/// How long a probe may stay without an outcome.
pub const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// Open times stop doubling here, whatever their maximum.
const MAX_DOUBLINGS: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    /// Until then.
    Open(Instant),
    /// A probe is under way; until then it is waited for.
    HalfOpen(Instant),
}

/// One endpoint's breaker.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    rules: BreakerRules,
    phase: Phase,
    /// Failed dials in a row, and the session of the last that was answered.
    dials: u32,
    refused: Option<u64>,
    /// Failed turns in a row, and the session of the last.
    turns: u32,
    session: Option<u64>,
    /// Times it has opened since the endpoint was last sound.
    trips: u32,
}

impl Breaker {
    #[must_use]
    pub fn new(rules: BreakerRules) -> Self {
        Self {
            rules,
            phase: Phase::Closed,
            dials: 0,
            refused: None,
            turns: 0,
            session: None,
            trips: 0,
        }
    }

    /// For operators.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match self.phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open(_) => BreakerState::Open,
            Phase::HalfOpen(_) => BreakerState::HalfOpen,
        }
    }

    /// Whether a dial would be allowed now.
    ///
    /// # Errors
    /// When to ask again.
    pub fn check(&self, now: Instant) -> Result<(), Instant> {
        match self.phase {
            Phase::Open(until) | Phase::HalfOpen(until) if now < until => Err(until),
            _ => Ok(()),
        }
    }

    /// Asks for a dial.
    ///
    /// # Errors
    /// When to ask again.
    pub fn admit(&mut self, now: Instant) -> Result<Admission, Instant> {
        self.check(now)?;
        if self.phase == Phase::Closed {
            return Ok(Admission::Ordinary);
        }
        let until = now + PROBE_LIMIT;
        self.phase = Phase::HalfOpen(until);
        Ok(Admission::Probe(until))
    }

    /// Whether this is the dial that a half-open breaker waits for. What others come to, that
    /// began before it opened or were waited for too long, says nothing of now.
    fn is_awaited(&self, admission: Admission) -> bool {
        matches!((self.phase, admission),
            (Phase::HalfOpen(until), Admission::Probe(own)) if until == own)
    }

    /// A dial ended without an outcome: if it was the probe, another may begin at once.
    pub fn give_back(&mut self, admission: Admission, now: Instant) {
        if self.is_awaited(admission) {
            self.phase = Phase::Open(now);
        }
    }

    /// Takes note. `jitter` is uniform in 0..1.
    pub fn learn(&mut self, evidence: Evidence, now: Instant, jitter: f64) {
        match evidence {
            Evidence::Reached(admission) => {
                self.dials = 0;
                self.refused = None;
                if self.is_awaited(admission) {
                    self.phase = Phase::Closed;
                    // One that opened for its turns is on trial until one of them ends well.
                    self.turns = self.turns.min(self.rules.failures.saturating_sub(1));
                    self.session = None;
                }
                if self.turns == 0 && self.phase == Phase::Closed {
                    self.trips = 0;
                }
            }
            Evidence::Unreachable(admission, session) => {
                let again = session.is_some() && self.refused == session;
                self.refused = session;
                if !again {
                    self.dials = self.dials.saturating_add(1);
                }
                let probe = self.is_awaited(admission);
                let many = self.phase == Phase::Closed && self.dials >= self.rules.failures;
                if probe || many {
                    self.open(now, jitter);
                }
            }
            Evidence::TurnEnded => {
                self.turns = 0;
                self.session = None;
                if self.phase == Phase::Closed {
                    self.trips = 0;
                }
            }
            Evidence::TurnFailed(session) => {
                if self.session.replace(session) == Some(session) {
                    return;
                }
                self.turns = self.turns.saturating_add(1);
                if self.phase == Phase::Closed && self.turns >= self.rules.failures {
                    self.open(now, jitter);
                }
            }
        }
    }

    fn open(&mut self, now: Instant, jitter: f64) {
        let doubled = 1_u32 << self.trips.min(MAX_DOUBLINGS);
        let whole = self.rules.open.saturating_mul(doubled).min(self.rules.max_open);
        // Between half of it and all, so that nodes do not probe in step.
        let open = whole.mul_f64(jitter.clamp(0.0, 1.0).mul_add(0.5, 0.5));
        self.trips = self.trips.saturating_add(1);
        self.phase = Phase::Open(now + open);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Admission::Ordinary, *};

    const RULES: BreakerRules = BreakerRules {
        failures: 3,
        open: Duration::from_secs(1),
        max_open: Duration::from_secs(10),
    };

    fn failing(times: u32, now: Instant) -> Breaker {
        let mut breaker = Breaker::new(RULES);
        for _ in 0..times {
            breaker.learn(Evidence::Unreachable(Ordinary, None), now, 0.5);
        }
        breaker
    }

    /// The breaker is half open, and this is its probe.
    fn probe(breaker: &mut Breaker, now: Instant) -> Admission {
        match breaker.admit(now) {
            Ok(probe @ Admission::Probe(_)) => probe,
            other => panic!("no probe: {other:?}"),
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_fewer_do_not() {
        let now = Instant::now();
        assert_eq!(failing(2, now).admit(now), Ok(Ordinary));
        assert!(failing(3, now).admit(now).is_err());
        let mut breaker = failing(2, now);
        breaker.learn(Evidence::Reached(Ordinary), now, 0.5);
        breaker.learn(Evidence::Unreachable(Ordinary, None), now, 0.5);
        assert_eq!(breaker.state(), BreakerState::Closed, "not in a row");
    }

    #[test]
    fn a_probe_that_succeeds_closes_it_and_one_that_fails_doubles_its_time() {
        let mut now = Instant::now();
        let mut breaker = failing(3, now);
        for seconds in [1, 2, 4, 8, 10, 10] {
            let until = breaker.admit(now).unwrap_err();
            assert_eq!(until - now, Duration::from_millis(750 * seconds), "jitter of one half");
            now = until;
            let probe = probe(&mut breaker, now);
            assert!(breaker.admit(now).is_err(), "one at a time");
            breaker.learn(Evidence::Unreachable(probe, None), now, 0.5);
        }
        now += RULES.max_open;
        let probe = probe(&mut breaker, now);
        breaker.learn(Evidence::Reached(probe), now, 0.5);
        assert_eq!(breaker.admit(now), Ok(Ordinary));
        breaker.learn(Evidence::Unreachable(Ordinary, None), now, 0.5);
        breaker.learn(Evidence::Unreachable(Ordinary, None), now, 0.5);
        breaker.learn(Evidence::Unreachable(Ordinary, None), now, 0.5);
        assert_eq!(breaker.admit(now).unwrap_err() - now, Duration::from_millis(750));
    }

    #[test]
    fn an_endpoint_that_connects_and_answers_nothing_is_not_taken_for_sound() {
        let now = Instant::now();
        let mut breaker = Breaker::new(RULES);
        for session in 0..3 {
            breaker.learn(Evidence::Reached(Ordinary), now, 0.0);
            breaker.learn(Evidence::TurnFailed(session), now, 0.0);
        }
        let until = breaker.admit(now).unwrap_err();
        let probe = probe(&mut breaker, until);
        breaker.learn(Evidence::Reached(probe), until, 0.0);
        breaker.learn(Evidence::TurnFailed(9), until, 0.0);
        assert_eq!(breaker.admit(until).unwrap_err() - until, RULES.open, "the second time");
    }

    #[test]
    fn one_session_alone_cannot_close_an_endpoint_to_others() {
        let now = Instant::now();
        let mut breaker = Breaker::new(RULES);
        for _ in 0..100 {
            breaker.learn(Evidence::TurnFailed(7), now, 0.5);
            breaker.learn(Evidence::Unreachable(Ordinary, Some(7)), now, 0.5);
        }
        assert_eq!(breaker.admit(now), Ok(Ordinary));
    }

    #[test]
    fn a_probe_that_is_given_back_or_lost_is_followed_by_another() {
        let now = Instant::now();
        let mut breaker = failing(3, now);
        let until = breaker.admit(now).unwrap_err();
        let first = probe(&mut breaker, until);
        breaker.give_back(first, until);
        probe(&mut breaker, until);
        assert_eq!(breaker.admit(until).unwrap_err(), until + PROBE_LIMIT);
        probe(&mut breaker, until + PROBE_LIMIT);
    }

    #[test]
    fn while_a_probe_is_under_way_what_other_dials_come_to_says_nothing() {
        let now = Instant::now();
        let mut breaker = failing(3, now);
        let lost = breaker.admit(now).unwrap_err();
        let old = probe(&mut breaker, lost);
        let now = lost + PROBE_LIMIT;
        let own = probe(&mut breaker, now);
        breaker.give_back(old, now);
        for late in [Ordinary, old] {
            breaker.learn(Evidence::Reached(late), now, 0.5);
            breaker.learn(Evidence::Unreachable(late, None), now, 0.5);
        }
        assert_eq!(breaker.admit(now), Err(now + PROBE_LIMIT), "its probe is still waited for");
        breaker.learn(Evidence::Reached(own), now, 0.5);
        assert_eq!(breaker.admit(now), Ok(Ordinary));
    }

    /// A step; dials are chosen among those that were admitted and have not ended.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Admit,
        GiveBack(usize),
        Reach(usize),
        Miss(usize, Option<u64>),
        TurnEnds,
        TurnFails(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let session = || 0_u64..4;
        prop_oneof![
            (0_u64..20_000).prop_map(Step::Wait),
            Just(Step::Admit),
            any::<usize>().prop_map(Step::GiveBack),
            any::<usize>().prop_map(Step::Reach),
            (any::<usize>(), prop::option::of(session()))
                .prop_map(|(dial, session)| Step::Miss(dial, session)),
            Just(Step::TurnEnds),
            session().prop_map(Step::TurnFails),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_it_never_stays_shut_and_lets_one_probe_at_a_time(
            steps in prop::collection::vec(step(), 0..200),
            jitter in 0.0..1.0,
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(RULES);
            let mut dials = Vec::new();
            let mut probing: Option<(Admission, Instant)> = None;
            for step in steps {
                let before = breaker.state();
                let mut end = |dial: usize| {
                    let dial = (!dials.is_empty()).then(|| dials.swap_remove(dial % dials.len()));
                    let probe = dial.is_some() && dial == probing.map(|(probe, _)| probe);
                    probing = probing.filter(|_| !probe);
                    (dial, probe)
                };
                let mut foreign = false;
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Admit => match breaker.admit(now) {
                        Ok(probe @ Admission::Probe(_)) => {
                            let two = probing.is_some_and(|(_, since)| now < since + PROBE_LIMIT);
                            prop_assert!(!two, "two probes at once");
                            probing = Some((probe, now));
                            dials.push(probe);
                        }
                        Ok(Ordinary) => {
                            prop_assert_eq!(breaker.state(), BreakerState::Closed);
                            dials.push(Ordinary);
                        }
                        Err(until) => prop_assert!(until > now),
                    },
                    Step::GiveBack(dial) => {
                        let (dial, probe) = end(dial);
                        foreign = !probe;
                        if let Some(dial) = dial {
                            breaker.give_back(dial, now);
                        }
                    }
                    Step::Reach(dial) => {
                        let (dial, probe) = end(dial);
                        foreign = !probe;
                        if let Some(dial) = dial {
                            breaker.learn(Evidence::Reached(dial), now, jitter);
                        }
                    }
                    Step::Miss(dial, session) => {
                        let (dial, probe) = end(dial);
                        foreign = !probe;
                        if let Some(dial) = dial {
                            breaker.learn(Evidence::Unreachable(dial, session), now, jitter);
                        }
                    }
                    Step::TurnEnds => breaker.learn(Evidence::TurnEnded, now, jitter),
                    Step::TurnFails(session) => {
                        breaker.learn(Evidence::TurnFailed(session), now, jitter);
                    }
                }
                let after = breaker.state();
                prop_assert!(
                    !foreign || before != BreakerState::HalfOpen || after == before,
                    "only its probe ends what is half open: {step:?}"
                );
                if before != BreakerState::Open && after == BreakerState::Open
                    && !matches!(step, Step::GiveBack(_))
                {
                    let open = breaker.check(now).unwrap_err() - now;
                    prop_assert!(open >= RULES.open / 2 && open <= RULES.max_open);
                }
                // No wedge: however it got here, a dial is allowed again in bounded time.
                let latest = now + RULES.max_open.max(PROBE_LIMIT);
                prop_assert!(breaker.check(latest).is_ok());
            }
        }
    }
}
