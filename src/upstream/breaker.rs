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
    /// A connection was made, or a request answered.
    Reached,
    /// None could be made, or the answer was a server's failure; then by the wish of the
    /// session of this number.
    Unreachable(Option<u64>),
    /// A turn came to its end.
    TurnEnded,
    /// A turn failed by the endpoint's fault, in the session of this number.
    TurnFailed(u64),
}

/// A dial that the breaker allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Ordinary,
    /// The one dial of a half-open breaker. It must be followed by [`Breaker::learn`] or
    /// [`Breaker::give_back`]; if it is lost, another follows after [`PROBE_LIMIT`].
    Probe,
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
        self.phase = Phase::HalfOpen(now + PROBE_LIMIT);
        Ok(Admission::Probe)
    }

    /// A probe ended without an outcome: another may begin at once.
    pub fn give_back(&mut self, now: Instant) {
        if matches!(self.phase, Phase::HalfOpen(_)) {
            self.phase = Phase::Open(now);
        }
    }

    /// Takes note. `jitter` is uniform in 0..1.
    pub fn learn(&mut self, evidence: Evidence, now: Instant, jitter: f64) {
        match evidence {
            Evidence::Reached => {
                self.dials = 0;
                self.refused = None;
                if matches!(self.phase, Phase::HalfOpen(_)) {
                    self.phase = Phase::Closed;
                    // One that opened for its turns is on trial until one of them ends well.
                    self.turns = self.turns.min(self.rules.failures.saturating_sub(1));
                    self.session = None;
                }
                if self.turns == 0 && self.phase == Phase::Closed {
                    self.trips = 0;
                }
            }
            Evidence::Unreachable(session) => {
                let again = session.is_some() && self.refused == session;
                self.refused = session;
                if !again {
                    self.dials = self.dials.saturating_add(1);
                }
                let probe = matches!(self.phase, Phase::HalfOpen(_));
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

    use super::*;

    const RULES: BreakerRules = BreakerRules {
        failures: 3,
        open: Duration::from_secs(1),
        max_open: Duration::from_secs(10),
    };

    fn failing(times: u32, now: Instant) -> Breaker {
        let mut breaker = Breaker::new(RULES);
        for _ in 0..times {
            breaker.learn(Evidence::Unreachable(None), now, 0.5);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_fewer_do_not() {
        let now = Instant::now();
        assert_eq!(failing(2, now).admit(now), Ok(Admission::Ordinary));
        assert!(failing(3, now).admit(now).is_err());
        let mut breaker = failing(2, now);
        breaker.learn(Evidence::Reached, now, 0.5);
        breaker.learn(Evidence::Unreachable(None), now, 0.5);
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
            assert_eq!(breaker.admit(now), Ok(Admission::Probe));
            assert!(breaker.admit(now).is_err(), "one at a time");
            breaker.learn(Evidence::Unreachable(None), now, 0.5);
        }
        now += RULES.max_open;
        breaker.admit(now).unwrap();
        breaker.learn(Evidence::Reached, now, 0.5);
        assert_eq!(breaker.admit(now), Ok(Admission::Ordinary));
        breaker.learn(Evidence::Unreachable(None), now, 0.5);
        breaker.learn(Evidence::Unreachable(None), now, 0.5);
        breaker.learn(Evidence::Unreachable(None), now, 0.5);
        assert_eq!(breaker.admit(now).unwrap_err() - now, Duration::from_millis(750));
    }

    #[test]
    fn an_endpoint_that_connects_and_answers_nothing_is_not_taken_for_sound() {
        let now = Instant::now();
        let mut breaker = Breaker::new(RULES);
        for session in 0..3 {
            breaker.learn(Evidence::Reached, now, 0.0);
            breaker.learn(Evidence::TurnFailed(session), now, 0.0);
        }
        let until = breaker.admit(now).unwrap_err();
        assert_eq!(breaker.admit(until), Ok(Admission::Probe));
        breaker.learn(Evidence::Reached, until, 0.0);
        breaker.learn(Evidence::TurnFailed(9), until, 0.0);
        assert_eq!(breaker.admit(until).unwrap_err() - until, RULES.open, "the second time");
    }

    #[test]
    fn one_session_alone_cannot_close_an_endpoint_to_others() {
        let now = Instant::now();
        let mut breaker = Breaker::new(RULES);
        for _ in 0..100 {
            breaker.learn(Evidence::TurnFailed(7), now, 0.5);
            breaker.learn(Evidence::Unreachable(Some(7)), now, 0.5);
        }
        assert_eq!(breaker.admit(now), Ok(Admission::Ordinary));
    }

    #[test]
    fn a_probe_that_is_given_back_or_lost_is_followed_by_another() {
        let now = Instant::now();
        let mut breaker = failing(3, now);
        let until = breaker.admit(now).unwrap_err();
        breaker.admit(until).unwrap();
        breaker.give_back(until);
        assert_eq!(breaker.admit(until), Ok(Admission::Probe));
        assert_eq!(breaker.admit(until).unwrap_err(), until + PROBE_LIMIT);
        assert_eq!(breaker.admit(until + PROBE_LIMIT), Ok(Admission::Probe));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Admit,
        GiveBack,
        Learn(Evidence),
    }

    fn step() -> impl Strategy<Value = Step> {
        let evidence = prop_oneof![
            Just(Evidence::Reached),
            Just(Evidence::Unreachable(None)),
            (0_u64..4).prop_map(|session| Evidence::Unreachable(Some(session))),
            Just(Evidence::TurnEnded),
            (0_u64..4).prop_map(Evidence::TurnFailed),
        ];
        prop_oneof![
            (0_u64..20_000).prop_map(Step::Wait),
            Just(Step::Admit),
            Just(Step::GiveBack),
            evidence.prop_map(Step::Learn),
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
            let mut probing: Option<Instant> = None;
            for step in steps {
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Admit => match breaker.admit(now) {
                        Ok(Admission::Probe) => {
                            let two = probing.is_some_and(|since| now < since + PROBE_LIMIT);
                            prop_assert!(!two, "two probes at once");
                            probing = Some(now);
                        }
                        Ok(Admission::Ordinary) => {
                            prop_assert_eq!(breaker.state(), BreakerState::Closed);
                        }
                        Err(until) => prop_assert!(until > now),
                    },
                    Step::GiveBack => {
                        breaker.give_back(now);
                        probing = None;
                    }
                    Step::Learn(evidence) => {
                        let before = breaker.state();
                        breaker.learn(evidence, now, jitter);
                        if matches!(evidence, Evidence::Reached | Evidence::Unreachable(_)) {
                            probing = None;
                        }
                        if before != BreakerState::Open
                            && breaker.state() == BreakerState::Open
                        {
                            let open = breaker.check(now).unwrap_err() - now;
                            prop_assert!(open >= RULES.open / 2 && open <= RULES.max_open);
                        }
                    }
                }
                // No wedge: however it got here, a dial is allowed again in bounded time.
                let latest = now + RULES.max_open.max(PROBE_LIMIT);
                prop_assert!(breaker.check(latest).is_ok());
            }
        }
    }
}
