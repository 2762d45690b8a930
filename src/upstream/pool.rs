//! The endpoints of one upstream, and what is known of their health on this node.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    breaker::{Admission, Breaker, Evidence},
    choice,
};
use crate::{
    config::{BreakerRules, Endpoint, Upstream},
    telemetry::metrics::{BreakerState, Metrics},
};

/// An upstream and the breakers of its endpoints.
pub struct Pool {
    upstream: Arc<Upstream>,
    /// In the order of the endpoints.
    breakers: Vec<Mutex<Breaker>>,
    metrics: Metrics,
}

/// An endpoint that was dialled, to tell what became of it.
#[derive(Clone)]
pub struct Member {
    pool: Arc<Pool>,
    at: usize,
}

/// A dial that an endpoint's breaker allows. Dropped without a word, it leaves no trace.
pub struct Permit {
    member: Member,
    admission: Admission,
    told: bool,
}

impl Pool {
    #[must_use]
    pub fn new(upstream: &Arc<Upstream>, rules: BreakerRules, metrics: Metrics) -> Arc<Self> {
        metrics.upstream(&upstream.name);
        for endpoint in &upstream.endpoints {
            metrics.breaker(&upstream.name, &endpoint.name, BreakerState::Closed);
        }
        let breaker = |_: &Endpoint| Mutex::new(Breaker::new(rules));
        let breakers = upstream.endpoints.iter().map(breaker).collect();
        Arc::new(Self { upstream: Arc::clone(upstream), breakers, metrics })
    }

    /// The best endpoint for a session that may be dialled and is none of `tried`; the one
    /// called `avoid` only if there is no other.
    ///
    /// # Errors
    /// When one may be dialled again; None if all have been tried.
    pub fn choose(
        self: &Arc<Self>,
        key: &[u8],
        avoid: Option<&str>,
        tried: &[usize],
        now: Instant,
    ) -> Result<Permit, Option<Instant>> {
        let endpoints = self.upstream.endpoints.iter();
        let mut order = choice::ranked(key, endpoints.map(|e| (&*e.name, e.weight)));
        order.retain(|at| !tried.contains(at));
        let named = |at: &usize| Some(&*self.upstream.endpoints[*at].name) == avoid;
        if let Some(last) = order.iter().position(named) {
            order[last..].rotate_left(1);
        }
        let mut earliest: Option<Instant> = None;
        for at in order {
            let member = Member { pool: Arc::clone(self), at };
            match member.change(|breaker| breaker.admit(now)) {
                Ok(admission) => return Ok(Permit { member, admission, told: false }),
                Err(until) => {
                    earliest = Some(earliest.map_or(until, |known| known.min(until)));
                }
            }
        }
        Err(earliest)
    }
}

/// The number that a breaker knows a session by.
fn session_number(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

impl Member {
    /// Its number in the upstream's list.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.endpoint().name
    }

    /// Whether it is given the operator's credential.
    #[must_use]
    pub fn is_operators(&self) -> bool {
        self.endpoint().is_operators()
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.pool.upstream.endpoints[self.at]
    }

    /// A turn came to its end here.
    pub fn turn_ended(&self) {
        self.learn(Evidence::TurnEnded);
    }

    /// A turn of a session failed by this endpoint's fault.
    pub fn turn_failed(&self, key: &[u8]) {
        self.learn(Evidence::TurnFailed(session_number(key)));
    }

    /// Whether it is given up for now and another could take its sessions.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        let open = self.pool.breakers[self.at].lock().state() == BreakerState::Open;
        open && self.has_other()
    }

    /// Whether another endpoint could be dialled.
    #[must_use]
    pub fn has_other(&self) -> bool {
        self.has_other_than(&[self.at], Instant::now())
    }

    /// Whether another endpoint than these could be dialled.
    pub(super) fn has_other_than(&self, tried: &[usize], now: Instant) -> bool {
        let mut breakers = self.pool.breakers.iter().enumerate();
        breakers.any(|(at, breaker)| !tried.contains(&at) && breaker.lock().check(now).is_ok())
    }

    fn learn(&self, evidence: Evidence) {
        self.change(|breaker| breaker.learn(evidence, Instant::now(), rand::random()));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.pool.breakers[self.at].lock();
        let before = breaker.state();
        let result = change(&mut breaker);
        let after = breaker.state();
        if before != after {
            let (upstream, name) = (&*self.pool.upstream.name, self.name());
            // Under the lock, or two changes might be shown in the wrong order.
            self.pool.metrics.breaker(upstream, name, after);
            drop(breaker);
            match after {
                BreakerState::Open => {
                    tracing::warn!(upstream, endpoint = name, "endpoint given up");
                }
                BreakerState::HalfOpen => tracing::debug!(upstream, endpoint = name, "probing"),
                BreakerState::Closed => tracing::info!(upstream, endpoint = name, "endpoint back"),
            }
        }
        result
    }
}

impl Permit {
    /// Whose permit it is.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// The endpoint to dial.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        self.member.endpoint()
    }

    /// Whether it answers is not waited for any more: if this was a probe, another may
    /// begin. What becomes of it can be told all the same.
    pub fn give_back(&mut self) {
        let admission = std::mem::replace(&mut self.admission, Admission::Ordinary);
        self.member.change(|breaker| breaker.give_back(admission, Instant::now()));
    }

    /// It answered, perhaps with a refusal of its own.
    pub fn reached(mut self) {
        self.told = true;
        self.member.learn(Evidence::Reached(self.admission));
    }

    /// It answered what is no session's: that says nothing of how it takes sessions, good or bad.
    /// A probe that was answered well has found that it is there.
    pub fn answered_otherwise(self, well: bool) {
        if well && matches!(self.admission, Admission::Probe(_)) {
            self.reached();
        }
    }

    /// It did not answer, or with a server's failure; then to the session of this key.
    pub fn failed(mut self, key: Option<&[u8]>) {
        self.told = true;
        let session = key.map(session_number);
        self.member.learn(Evidence::Unreachable(self.admission, session));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.told {
            self.give_back();
        }
    }
}
